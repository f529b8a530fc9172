"""One model over the devices of several processes: the tokens of one device, a share of the memory."""

import json

import pytest


@pytest.mark.slow
def test_two_processes_of_four_devices_decode_as_one_device_does(decoder):
    answers = []
    for status, out, err in [*decoder(1, 1).end(900), *decoder(2, 4).end(900)]:
        assert status == 0, err
        answers.append(json.loads(out.splitlines()[-1]))
    one, *both = answers
    assert one["held"] == one["total"]
    for answer in both:
        assert answer["codes"] == one["codes"] and answer["windows"] == one["windows"]
        assert answer["total"] == one["total"] and answer["held"] < 0.3 * answer["total"]
