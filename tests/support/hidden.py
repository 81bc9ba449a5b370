"""Python code that makes every package of an extra look as if it were not installed, for the start of a script."""

HIDE = """
import sys
import crypto_lstm.utils.extras as extras
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in extras._MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""
