"""What pyproject.toml cannot say: a wheel carries a copy of the device catalogue that lies at the root."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CATALOGUE = Path("targets.yaml")


class BuildWithCatalogue(build_py):
    """Copies targets.yaml to edgekiln/data; an editable install reads the one at the root."""

    def _copy(self) -> Path:
        return Path(self.build_lib, "edgekiln", "data", CATALOGUE.name)

    def run(self) -> None:
        """Build the packages, then add the catalogue."""
        super().run()
        if not self.editable_mode:
            self._copy().parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(CATALOGUE), str(self._copy()))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Name the copy among the files built."""
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, str(self._copy())]

    def get_source_files(self) -> list[str]:
        """Name the catalogue among the sources, so that a source distribution has it."""
        return [*super().get_source_files(), str(CATALOGUE)]


setup(cmdclass={"build_py": BuildWithCatalogue})
