"""Processes share rows: each row goes to one of them, and a fast one takes more. The test's processes are threads."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from brain_ldm_bundle.scripts.shared.team import Team, left_to_make, shard_of


def together(size, work):
    """Call `work(team)` for each of `size` teams that talk to each other; what they return, in the order of ranks."""
    store, teams = HashStore(), [Team() for _ in range(size)]
    for rank, team in enumerate(teams):
        team.name, team.rank, team.size, team.store = "team", rank, size, store
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, teams))


def test_each_batch_goes_to_one_process_and_a_fast_one_takes_more():
    slow_may_go_on = threading.Event()

    def work(team):
        taken = []
        for batch in team.batches(23, 2):
            taken.append(batch)
            if team.rank == 1:
                slow_may_go_on.wait(60)
        slow_may_go_on.set()
        return taken

    first, second = together(2, work)
    assert sorted(row for batch in first + second for row in batch) == list(range(23))
    assert len(second) <= 1 and len(first) >= 11


def test_one_process_takes_all_batches_and_knows_their_number_and_can_do_it_again():
    batches = Team().batches(5, 2)
    assert list(batches) == [[0, 1], [2, 3], [4]] == list(batches) and len(batches) == 3
    assert list(Team().batches(0, 2)) == []


def test_the_first_process_answers_for_all_and_the_others_do_not_ask():
    asked = []
    assert together(3, lambda team: team.from_first(lambda: asked.append(team.rank) or [7, None])) == [[7, None]] * 3
    assert asked == [0]


def test_all_processes_learn_what_each_found():
    assert (
        together(3, lambda team: [team.gather([team.rank]), team.gather(str(team.rank))])
        == [[[[0], [1], [2]], ["0", "1", "2"]]] * 3
    )


def test_the_table_is_written_when_all_are_done_and_before_any_ends():
    """The first process is the fastest to make its rows and the slowest to write the table."""
    events = []

    class Derivative:
        def finish(self, rows):
            time.sleep(0.2)
            events.append(rows)

    def work(team):
        time.sleep(0.2 * team.rank)
        events.append("made")
        team.finish(Derivative(), "rows")
        events.append("end")

    together(3, work)
    assert events == ["made"] * 3 + ["rows"] + ["end"] * 3


@pytest.mark.parametrize("parts", [1, 3, 10])
def test_shards_are_all_rows_once(parts):
    rows = list(range(10))
    shards = [shard_of(rows, f"{part + 1}/{parts}") for part in range(parts)]
    assert sorted(row for shard in shards for row in shard) == rows
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shard_of(rows, None) is rows


@pytest.mark.parametrize("shard", ["0/4", "5/4", "3", "3/", "a/b", "1/0", 3, "-1/4"])
def test_a_shard_that_does_not_exist_is_refused(shard):
    with pytest.raises(ValueError, match="shard must be K/N with K from 1 to N, such as 3/40"):
        shard_of([1, 2], shard)


def test_rows_that_are_left_are_found_in_their_order():
    assert left_to_make(range(2500), lambda row: row % 1000 != 7) == [7, 1007, 2007]
