"""The experiments lie beside the package, and ship inside it: `jaxdiff train fashion` needs no checkout."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxdiff*"]), "jaxdiff.experiments"],
    package_dir={"jaxdiff.experiments": "experiments"},
)
