"""What goes where when pictures are put into rows, and where positions begin anew in packed ones."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mgm_lora.errors import DataError
from mgm_lora.model.sequence import IGNORE_INDEX, PICTURE_TOKEN, MergedSequence, merge_pictures, used_slots

N, H = 3, 2
IDS = torch.tensor([[5, PICTURE_TOKEN, 6, 7, 0], [8, 9, PICTURE_TOKEN, PICTURE_TOKEN, 4]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool()
LABELS = torch.tensor([[-100, -100, 6, 7, 0], [-100, 9, 1, 1, 4]])


def merge(**changes: object) -> tuple[torch.Tensor, list[list[torch.Tensor]], MergedSequence]:
    embeds = torch.arange(20.0).view(2, 5, H).requires_grad_()
    pictures = [[torch.full((N, H), 100.0)], [torch.full((N, H), 200.0), torch.full((N, H), 300.0)]]
    for picture in (*pictures[0], *pictures[1]):
        picture.requires_grad_()
    arguments = {
        "input_ids": IDS,
        "attention_mask": MASK,
        "labels": LABELS,
        "picture_features": pictures,
        "max_length": 100,
        "padding_side": "right",
    } | changes
    return embeds, pictures, merge_pictures(embeds, **arguments)  # type: ignore[arg-type]


def test_pictures_take_the_places_of_their_ids_and_rows_are_padded_to_one_length() -> None:
    embeds, pictures, merged = merge()
    first = torch.cat([embeds[0, :1], pictures[0][0], embeds[0, 2:4], torch.zeros(3, H)])
    second = torch.cat([embeds[1, :2], *pictures[1], embeds[1, 4:]])
    assert torch.equal(merged.inputs_embeds, torch.stack([first, second]))
    assert merged.attention_mask.tolist() == [[True] * 6 + [False] * 3, [True] * 9]
    ignore = IGNORE_INDEX
    assert merged.labels.tolist() == [[ignore] * 4 + [6, 7] + [ignore] * 3, [ignore, 9] + [ignore] * 6 + [4]]
    assert merged.position_ids is None


def test_padding_on_the_left_moves_rows_to_the_end() -> None:
    _, _, right = merge()
    _, _, left = merge(padding_side="left")
    assert torch.equal(left.inputs_embeds[0, 3:], right.inputs_embeds[0, :6])
    assert not left.inputs_embeds[0, :3].any()
    assert left.attention_mask[0].tolist() == [False] * 3 + [True] * 6
    assert torch.equal(left.labels[0, 3:], right.labels[0, :6])


def test_long_rows_are_cut_even_within_a_picture() -> None:
    _, _, whole = merge()
    _, _, cut = merge(max_length=7)
    assert torch.equal(cut.inputs_embeds, whole.inputs_embeds[:, :7])
    assert torch.equal(cut.labels, whole.labels[:, :7])
    assert cut.targets.tolist() == [6, 7, 9]


def test_places_that_predict_are_those_before_the_labels() -> None:
    _, _, merged = merge()
    length = merged.labels.shape[1]
    assert merged.predicting.tolist() == [3, 4, length + 0, length + 7]
    assert merged.targets.tolist() == [6, 7, 9, 4]
    assert merged.targets.tolist() == merged.labels.flatten()[merged.predicting + 1].tolist()


def test_without_labels_nothing_is_predicted() -> None:
    _, _, merged = merge(labels=None)
    assert (merged.labels == IGNORE_INDEX).all()
    assert len(merged.predicting) == len(merged.targets) == 0


def test_gradients_reach_each_embedding_and_picture_once() -> None:
    embeds, pictures, merged = merge()
    weights = torch.arange(float(merged.inputs_embeds.numel())).view_as(merged.inputs_embeds)
    (merged.inputs_embeds * weights).sum().backward()
    assert torch.equal(pictures[0][0].grad, weights[0, 1:4])  # type: ignore[arg-type]
    assert torch.equal(pictures[1][1].grad, weights[1, 5:8])  # type: ignore[arg-type]
    assert embeds.grad is not None
    assert torch.equal(embeds.grad[0, 2:4], weights[0, 4:6])
    assert not embeds.grad[0, 1].any()
    assert not embeds.grad[0, 4].any()


def test_positions_begin_anew_with_each_sample_and_padding_continues_the_last() -> None:
    sample_ids = torch.tensor([[0, 0, 0, 1, 0], [0, 1, 1, 2, 2]])
    _, _, merged = merge(sample_ids=sample_ids)
    assert merged.position_ids is not None
    assert merged.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 0, 1, 2, 3, 0, 1, 2, 3]]


def test_a_row_without_pictures_passes_over_a_slot() -> None:
    ids = torch.tensor([[PICTURE_TOKEN, 1], [1, 1], [PICTURE_TOKEN, PICTURE_TOKEN]])
    assert used_slots(ids) == [[0], [], [2, 3]]


def test_as_many_pictures_as_places() -> None:
    with pytest.raises(DataError, match="a row has 1 picture places and 0 pictures"):
        merge(picture_features=[[], [torch.zeros(N, H)] * 2])


def test_shapes_are_known_under_fake_tensors() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        merged = merge_pictures(
            torch.zeros(2, 5, H),
            input_ids=IDS,
            attention_mask=MASK,
            labels=LABELS,
            picture_features=[[torch.zeros(N, H)], [torch.zeros(N, H)] * 2],
            max_length=100,
            padding_side="right",
        )
        assert merged.inputs_embeds.shape == (2, 9, H)
        assert merged.targets.shape == (4,)
