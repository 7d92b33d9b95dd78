"""Put on the path of Python children of a run: they report what they read. Then the next sitecustomize runs."""


def _begin():  # type: ignore[no-untyped-def]  # read by older Pythons too
    import os
    import sys

    here = os.path.dirname(os.path.abspath(__file__))
    try:
        import importlib.machinery

        if sys.version_info >= (3, 9) and os.environ.get("MODELHUB_RUN_WATCH"):
            place = os.path.join(os.path.dirname(here), "spy.py")
            spy = type(sys)("_modelhub_spy")  # by hand: importlib.util takes its time, in every child
            spy.__file__ = place
            sys.modules["_modelhub_spy"] = spy
            importlib.machinery.SourceFileLoader("_modelhub_spy", place).exec_module(spy)
            spy.report_to_parent()
    except Exception:  # noqa: BLE001, S110  # a child that cannot be watched runs all the same
        pass
    try:
        rest = [path for path in sys.path if os.path.abspath(path or ".") != here]
        found = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
        if found is not None and found.loader is not None:
            import importlib.util

            module = importlib.util.module_from_spec(found)
            sys.modules["sitecustomize"] = module
            found.loader.exec_module(module)
    except (ImportError, NameError):  # there is none; a Python without importlib
        pass


_begin()  # type: ignore[no-untyped-call]
