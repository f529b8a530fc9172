"""The verbs of the command line, one thin function each, by what they work on; `flags` holds what they share."""
