"""Photos are known again by their bytes."""

from imaging.digests import DIGEST, TrainedOn, digests, joined


def test_a_photo_is_known_by_its_bytes_wherever_it_lies(tmp_path):
    for name, text in (("a.jpg", b"one"), ("b.jpg", b"two"), ("copy.jpg", b"one"), ("c.jpg", b"3")):
        (tmp_path / name).write_bytes(text)
    told = digests([str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg"), str(tmp_path / "gone.jpg")])
    assert len(told) == 2 * DIGEST
    known = TrainedOn(told)
    names = ["copy.jpg", "b.jpg", "c.jpg", "gone.jpg"]
    assert known.among([str(tmp_path / name) for name in names]) == [True, True, False, False]
    assert joined(told, digests([str(tmp_path / "copy.jpg")]), "") == told


def test_a_model_that_tells_nothing_knows_no_photo(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"one")
    assert TrainedOn("").among([str(tmp_path / "a.jpg")]) == [False]
