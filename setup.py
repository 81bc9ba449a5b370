"""Build crypto_lstm from settings.ini, the one place that names versions and requirements."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]


def absolute_links(text: str) -> str:
    """README with links that work outside of the repository, as on PyPI: pictures as files, others as pages."""
    pages = f"{settings['git_url']}/blob/{settings['branch']}"
    files = f"{settings['git_url']}/raw/{settings['branch']}"
    text = re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\1{files}/", text)
    return re.sub(r"((?<!!)\[[^\]]*\]\()(?!https?:|#)", rf"\1{pages}/", text)


train = settings["train_requirements"].split()
lab = train + settings["lab_requirements"].split()
setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=absolute_links((here / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"].split(),
    url=settings["git_url"],
    project_urls={
        "Source": settings["git_url"],
        "Changelog": f"{settings['git_url']}/blob/{settings['branch']}/CHANGELOG.md",
        "Issues": f"{settings['git_url']}/issues",
        "Documentation": f"{settings['git_url']}/tree/{settings['branch']}/nbs",
    },
    packages=find_packages(include=["crypto_lstm", "crypto_lstm.*"]),
    package_data={"crypto_lstm": ["py.typed", "*.pyi", "widgets/assets/*"]},
    python_requires=f">={settings['min_python']},<{settings['max_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={
        "train": train,
        "live": settings["live_requirements"].split(),
        "gpu": train + settings["gpu_requirements"].split(),
        "lab": lab,
        "docs": settings["docs_requirements"].split(),
        "browser": settings["browser_requirements"].split(),
        "dev": lab + settings["dev_requirements"].split(),
    },
    entry_points={"console_scripts": settings["console_scripts"].split()},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Framework :: Jupyter",
        "Intended Audience :: Developers",
        "Intended Audience :: Financial and Insurance Industry",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Office/Business :: Financial :: Investment",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
