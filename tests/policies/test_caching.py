from tasks.policies.caching import cache_or_recompute

SLOW_CPU, GPU, DISK = 87e9, 790e12, 2e9


def test_a_cpu_reads_and_a_fast_device_with_a_small_model_computes():
    read = cache_or_recompute("auto", 384, 4, 2, SLOW_CPU, DISK)
    assert read.cached
    assert read.reason.startswith("reading is faster: 2,000 MB/s of disk against a break-even of 5 MB/s")
    again = cache_or_recompute("auto", 384, 4, 2, GPU, DISK)
    assert not again.cached
    assert "a break-even of 42,860 MB/s" in again.reason


def test_a_wide_deep_prefix_is_worth_its_disk_even_there():
    assert cache_or_recompute("auto", 4096, 30, 2, GPU, DISK).cached


def test_what_is_asked_for_wins_and_nothing_is_kept_before_the_first_block():
    assert cache_or_recompute("always", 384, 4, 2, GPU, DISK).cached
    assert not cache_or_recompute("never", 384, 4, 2, SLOW_CPU, DISK).cached
    assert not cache_or_recompute("auto", 384, 0, 2, SLOW_CPU, DISK).cached
