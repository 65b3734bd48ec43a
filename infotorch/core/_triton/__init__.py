"""Triton kernels, imported only where they are going to run.

Set ``TRITON_INTERPRET=1`` before importing Triton to run them on CPU tensors, slowly, for tests.
"""
