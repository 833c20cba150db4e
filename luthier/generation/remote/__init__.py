"""Answers of a running `vllm serve`, asked over HTTP as the engine of this process is: the same requests, the same answers."""
