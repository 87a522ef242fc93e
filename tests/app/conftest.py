"""The app's tests need `make test-app`, which brings Gradio and Playwright, and a Chromium."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("gradio") else ["test_*.py"]
