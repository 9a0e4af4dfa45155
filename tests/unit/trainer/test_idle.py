import pytest

from trainer.collection.idle import IdleMeter


def test_share_of_the_servers_time_without_a_group() -> None:
    meter = IdleMeter(0.0)
    assert meter.read(5.0) is None, "no server was there"
    meter.note(num_sampling=8, num_servers=2, now_s=5.0)
    meter.note(num_sampling=1, num_servers=2, now_s=9.0)
    meter.note(num_sampling=0, num_servers=2, now_s=13.0)
    # 4 s of both busy, 4 s of one idle, 2 s of both idle: 8 of 20 server seconds.
    assert meter.read(15.0) == pytest.approx(8 / 20)
    assert meter.read(16.0) == 1.0, "it starts over, with the load as it was"
