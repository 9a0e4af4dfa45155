"""How lanes are divided among servers, and taken in turn."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rollout_service.queue.lanes import Lanes, own_lanes
from services.redis.keys import CONSUMER_GROUPS, PROMPT_LANES, prompt_stream
from services.schemas.prompts import PromptGroup

server_sets = st.sets(st.text(st.characters(codec="ascii"), min_size=1), min_size=1, max_size=40)


def owners(servers: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {lane: [] for lane in PROMPT_LANES}
    for server in servers:
        for lane in own_lanes(server, servers):
            found[lane].append(server)
    return found


@given(server_sets)
def test_every_lane_and_every_server_has_an_owner_and_a_lane(servers: set[str]) -> None:
    assert all(owners(servers).values())
    assert all(own_lanes(server, servers) for server in servers)


@given(server_sets, st.data())
def test_those_who_stay_keep_their_lanes(servers: set[str], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(servers)))
    for server in servers - {gone}:
        before, after = own_lanes(server, servers), own_lanes(server, servers - {gone})
        # One that had none of its own gives up the lane that it shared when it inherits another.
        assert set(before) <= set(after) or len(before) == 1


def test_a_few_servers_never_share_a_lane() -> None:
    servers = {f"node-{i}-8200-{i:06x}" for i in range(3)}
    assert all(len(found) == 1 for found in owners(servers).values())


def test_a_server_need_not_be_on_the_list_itself() -> None:
    assert own_lanes("new", []) == list(PROMPT_LANES)
    assert own_lanes("new", ["old"]) == own_lanes("new", ["old", "new"])


def test_all_lanes_are_looked_at_own_ones_first_each_in_its_turn() -> None:
    lanes = Lanes("a")
    lanes.share(["a", "b", "c"])
    orders = [lanes.order() for _ in range(len(lanes.own) * 3)]
    for order in orders:
        assert sorted(order) == sorted(PROMPT_LANES)
        assert set(order[: len(lanes.own)]) == set(lanes.own)
    assert Counter(order[0] for order in orders) == dict.fromkeys(lanes.own, 3)
    assert len({order[len(lanes.own)] for order in orders}) > 1, "stealing takes turns too"


def test_a_prompt_has_one_lane() -> None:
    fields = {
        "group_id": "g1",
        "incarnation": 1,
        "epoch": 0,
        "index": 0,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}]}],
        "images": [],
        "sampling": {},
    }
    image = {"sha256": "c" + "0" * 63, "num_bytes": 1}
    seen = PromptGroup.model_validate(fields | {"images": [image, image]})
    assert prompt_stream(seen) == "prompts/c"
    assert prompt_stream(seen.model_copy(update={"group_id": "g2", "attempt": 3})) == "prompts/c"
    blind = {
        prompt_stream(PromptGroup.model_validate(fields | {"group_id": f"g{i}"}))
        for i in range(200)
    }
    assert blind == set(PROMPT_LANES) < set(CONSUMER_GROUPS)
