"""Quantization: partitions, codebooks and the linear map of the queries."""
