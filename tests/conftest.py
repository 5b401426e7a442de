"""Settings of all tests."""

from hypothesis import settings

# The same examples every time: a failure belongs to the change that made it. Long runs draw anew (`slow`).
settings.register_profile("cofuse", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("cofuse")
