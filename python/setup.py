"""The wheel carries libmoefuse_kernels.so, so it is for one platform, and for any Python 3: `make wheel` builds it."""
import pathlib
import re

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.dist import Distribution

HERE = pathlib.Path(__file__).resolve().parent


class PlatformWheel(bdist_wheel):
    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class HasLibrary(Distribution):
    def has_ext_modules(self):
        return True


def version():
    return re.search(r'__version__ = "(.*)"', (HERE / "moefuse" / "_abi.py").read_text()).group(1)


if not (HERE / "moefuse" / "lib" / "libmoefuse_kernels.so").exists():
    raise SystemExit("python/moefuse/lib holds no libmoefuse_kernels.so: build the wheel with `make wheel`")
setup(version=version(), cmdclass={"bdist_wheel": PlatformWheel}, distclass=HasLibrary)
