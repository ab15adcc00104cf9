import pytest

from mgm_lora.data.picture_facts import FactStore, PictureFacts, Sightings
from mgm_lora.data.structure import FINE


def test_names_come_once_and_in_their_order() -> None:
    store = FactStore()
    store.add_names(str(number % 7000) for number in range(20_000))
    assert list(store) == list(store.unknown()) == [str(number) for number in range(7000)]
    assert len(store) == 7000


def test_facts_may_be_put_while_the_unknown_names_are_read() -> None:
    store = FactStore()
    store.add_names(str(number) for number in range(10_000))
    seen = []
    for name in store.unknown():
        seen.append(name)
        store.put([(name, PictureFacts(FINE, width=int(name)))])
    assert len(seen) == len(set(seen)) == 10_000
    assert list(store.unknown()) == []
    assert store["77"] == PictureFacts(FINE, width=77)


def test_a_name_without_facts_is_no_key() -> None:
    store = FactStore()
    store.add_names(["a"])
    for name in ("a", "b"):
        with pytest.raises(KeyError):
            store[name]


def test_facts_that_change_are_read_anew() -> None:
    store = FactStore()
    store.add_names(["a"])
    store.put([("a", PictureFacts(FINE, pixels=b"1"))])
    assert store["a"].pixels == b"1"
    store.put_pixels([("a", b"2")])
    assert store["a"].pixels == b"2"


def test_only_pictures_of_other_bytes_and_like_pixels_are_doubtful() -> None:
    store = FactStore()
    facts = {"a": ("1", b"x"), "b": ("2", b"x"), "c": ("3", b"y"), "d": ("3", b"y"), "e": ("4", b"z")}
    store.add_names(facts)
    store.put((name, PictureFacts(FINE, sha256=sha256, pixels=pixels)) for name, (sha256, pixels) in facts.items())
    assert store.doubtful() == ["a", "b"]


def test_the_first_name_of_a_file_stays_and_other_files_are_known() -> None:
    sightings = Sightings()
    assert sightings.first_name("heldout", pixels=b"x", name="a") == "a"
    assert sightings.first_name("heldout", pixels=b"x", name="b") == "a"
    assert sightings.first_name("train", pixels=b"x", name="c") == "c"
    assert sightings.others("train", pixels=b"x") == {"heldout": "a"}
    assert sightings.others("train", pixels=b"y") == {}
