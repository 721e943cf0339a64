"""Encodes many videos on a Ray cluster into one index; `encode_dataset` does it. The extra `ray` installs Ray."""

from mmn_fast.batch.encode import EncodingReport, encode_dataset

__all__ = ["EncodingReport", "encode_dataset"]
