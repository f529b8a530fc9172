"""A token model of any records in any order of prediction, of which the systems' token models are settings.

`model.pattern` names the order (`tokens.pattern.Pattern`). What a row reads and predicts, who sees whom in it, which
engine decodes it and what is compiled follow from there.
"""
