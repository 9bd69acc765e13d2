"""A Parsl configuration as a user writes one."""

from parsl import Config
from parsl.executors import ThreadPoolExecutor


def config():
    return Config(executors=[ThreadPoolExecutor(max_threads=2)], run_dir="logs", initialize_logging=False)


not_a_config = 3
