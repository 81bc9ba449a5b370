"""Build crypto_lstm from settings.ini, the one place that names versions and requirements."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

lab = settings["lab_requirements"].split()
setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"].split(),
    url=settings["git_url"],
    packages=find_packages(include=["crypto_lstm", "crypto_lstm.*"]),
    package_data={"crypto_lstm": ["py.typed"]},
    python_requires=f">={settings['min_python']},<{settings['max_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={
        "gpu": settings["gpu_requirements"].split(),
        "lab": lab,
        "dev": lab + settings["dev_requirements"].split(),
    },
    entry_points={"console_scripts": settings["console_scripts"].split()},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Financial and Insurance Industry",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
    zip_safe=False,
)
