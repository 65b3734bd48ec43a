"""Tables, splits, windows, and what the data module refuses."""

from __future__ import annotations

import pytest
import torch

from infotorch.data import SeriesDataModule, Split, Windows, read_long, read_wide


def series(length=200, channels=2):
    return torch.randn(length, channels, generator=torch.Generator().manual_seed(0)).cumsum(0)


def module(values=None, split="ratio", **options):
    return SeriesDataModule(series() if values is None else values, split, **{"lookback": 12, "horizon": 4} | options)


def test_wide_tables_with_and_without_header(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("date,a,b\n2020-01-01 00:00,1,2\n2020-01-01 01:00,3,\n")
    values, names = read_wide(path)
    assert names == ["a", "b"]
    torch.testing.assert_close(values, torch.tensor([[1.0, 2.0], [3.0, torch.nan]]).double(), equal_nan=True)
    assert read_wide(path, ["b"])[0][0].tolist() == [2.0]
    path.write_text("1,2\n3,4\n")
    values, names = read_wide(path)
    assert (values.tolist(), names) == ([[1.0, 2.0], [3.0, 4.0]], ["0", "1"])


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "empty file"),
        ("a,b\n1,2\n3\n", {}, r"row 3: expected 2 cells, got 1"),
        ("a,b\n1,x\n", {}, "expected a number, got 'x'"),
        ("a,b\n1,2\n", {"columns": ["c"]}, "columns: expected one of a, b; got 'c'"),
    ],
)
def test_bad_wide_tables(tmp_path, text, options, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_wide(path, **options)


def test_long_tables(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("unique_id,ds,y\nb,10,4\nb,9,2\na,9,1\na,10,3\nb,11,5\n")
    values, names = read_long(path)
    assert names == ["a", "b"]
    assert values[:2].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert values[2].isnan().tolist() == [True, False]  # a gap, which the data module refuses
    path.write_text("unique_id,ds,y\na,1,1\na,1,2\n")
    with pytest.raises(ValueError, match="one row per series and time"):
        read_long(path)
    with pytest.raises(ValueError, match="got 'value'"):
        read_long(path, value="value")


def test_standard_splits():
    assert Split.standard("ett_hour", 17420) == Split(8640, 2880, 2880)
    assert Split.standard("ett_minute", 69680) == Split(34560, 11520, 11520)
    assert Split.standard("ratio", 7588) == Split(5311, 760, 1517)
    with pytest.raises(ValueError, match="at least 14400 steps"):
        Split.standard("ett_hour", 100)
    with pytest.raises(ValueError, match="did you mean 'ett_hour'"):
        Split.standard("ett_hours", 20000)


def test_scaled_by_training_alone_and_split_without_gaps():
    values = series()
    data = module(values)
    train = values[:140].double()
    scaled = ((values - train.mean(0)) / train.std(0, correction=0)).float()
    torch.testing.assert_close(data.train[0].x, scaled[:12])
    assert torch.equal(data.validation[0].y, data.validation.values[12:16])
    torch.testing.assert_close(data.validation[0].y, scaled[140:144])  # the first target follows training at once
    torch.testing.assert_close(data.test[len(data.test) - 1].y, scaled[196:200])
    later = values.clone()
    later[140:] *= 100
    torch.testing.assert_close(module(later).train.values, data.train.values)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_no_window_is_dropped(batch_size):
    data = module(batch_size=batch_size)
    for loader, windows in ((data.test_dataloader(), data.test), (data.train_dataloader(), data.train)):
        seen = torch.cat([batch.number for batch in loader])
        assert sorted(seen.tolist()) == list(range(len(windows)))


def test_windows_are_what_they_say():
    windows = Windows(torch.arange(20.0).unsqueeze(1), 4, 2, stride=3)
    assert len(windows) == 5
    number, x, y = windows[-1]
    assert number == 4
    assert x.flatten().tolist() == [12, 13, 14, 15]
    assert y.flatten().tolist() == [16, 17]
    with pytest.raises(IndexError):
        windows[5]
    with pytest.raises(ValueError, match="values: expected at least 6 steps, got 5"):
        Windows(torch.zeros(5, 1), 4, 2)


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        loader = module(seed=seed, train_windows=20).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [int(i) for batch in loader for i in batch.number]

    assert len(order(0, 0)) == 20
    assert order(0, 1) == order(0, 1)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_processes_share_the_windows_of_an_epoch(monkeypatch):
    parts = []
    for rank in range(3):
        monkeypatch.setattr("infotorch.core.distributed.world_size", lambda: 3)
        monkeypatch.setattr("infotorch.core.distributed.rank", lambda rank=rank: rank)
        sampler = module(train_windows=20).train_dataloader().sampler
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler) == 7
    monkeypatch.undo()
    whole = list(module(train_windows=20).train_dataloader().sampler)
    together = [i for step in zip(*parts, strict=True) for i in step]
    assert together == [*whole, whole[0]]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.zeros(10), {}, r"expected shape \(T, C\), got \(10,\)"),
        (series(20), {}, "at least 16 steps of train for lookback=12 and horizon=4, got 14"),
        (series(30), {}, "at least 4 steps of validation"),
        (series(100), {"split": Split(90, 20, 20)}, "at least 130 steps"),
        (series().index_fill(0, torch.tensor([17]), torch.nan), {}, "got 2 that are not, the first at step 17"),
        (torch.ones(200, 1), {}, r"constant one \(0\)"),
        (series(), {"horizon": 0}, "horizon: expected a positive integer, got 0"),
        (series(), {"train_windows": 0}, "train_windows"),
    ],
)
def test_bad_data(values, options, message):
    with pytest.raises(ValueError, match=message):
        module(values, **options)


def test_no_tensor():
    with pytest.raises(TypeError, match=r"values: expected a torch\.Tensor, got list"):
        module([[1.0]])
