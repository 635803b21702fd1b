"""Loaders that stream the same rows side by side, each in a process and with packages of its own.

`job` says what a process is to do, `child` does it, a module for each contender knows its library;
`data`, `storage`, `environment` and `process` belong to the benchmark that starts them.
"""
