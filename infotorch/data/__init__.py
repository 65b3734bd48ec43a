"""Data: tables and series, split and standardized the way their fields do, as Lightning data modules."""

from infotorch.data.series import SeriesDataModule, Split, WindowBatch, Windows, read_long, read_wide

__all__ = ["SeriesDataModule", "Split", "WindowBatch", "Windows", "read_long", "read_wide"]
