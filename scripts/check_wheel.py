"""Says what is in a repaired wheel, and fails unless it is what users are promised.

check_wheel.py WHEEL. Needs pyelftools, which comes with auditwheel.
"""

from __future__ import annotations

import re
import sys
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

SIZE_LIMIT = 3_000_000
NAME = re.compile(r"batchnorm-\d+\.\d+\.\d+-py3-none-(manylinux_2_\d+_\w+)\.whl")
LIBRARIES = re.compile(
    r"batchnorm\.libs/libomp\S*\.so\S* batchnorm/libbatchnorm\.so\.(0\.\d+|[1-9]\d*)"
)
LICENSES = {"LICENSE", "LICENSE-libomp"}
GLIBC = re.compile(r"(lib(c|m|dl|pthread|rt)|ld-linux\S*)\.so\.\d+")


def needed(library: bytes) -> set[str]:
    section = ELFFile(BytesIO(library)).get_section_by_name(".dynamic")
    assert isinstance(section, DynamicSection)
    return {tag.needed for tag in section.iter_tags("DT_NEEDED")}


def main(wheel: Path) -> None:
    name = NAME.fullmatch(wheel.name)
    if not name:
        sys.exit(f"error: the wheel is {wheel.name}, expected {NAME.pattern}")
    size = wheel.stat().st_size
    if size >= SIZE_LIMIT:
        sys.exit(f"error: {wheel.name} has {size:,} bytes, expected less than {SIZE_LIMIT:,}")

    with ZipFile(wheel) as archive:
        files = archive.namelist()
        libraries = {file: archive.read(file) for file in sorted(files) if ".so" in file}
    found = " ".join(libraries)
    if not LIBRARIES.fullmatch(found):
        sys.exit(f"error: the wheel's libraries are '{found}', expected '{LIBRARIES.pattern}'")
    licenses = {Path(file).name for file in files if ".dist-info/licenses/" in file}
    if not licenses >= LICENSES:
        sys.exit(f"error: the wheel's licences are {sorted(licenses)}, expected {sorted(LICENSES)}")

    print(f"{wheel.name}\n{size:,} bytes, limit {SIZE_LIMIT:,}; tag {name[1]}")
    inside = {Path(file).name for file in libraries}
    for file, content in libraries.items():
        outside = {n for n in needed(content) if n not in inside and not GLIBC.fullmatch(n)}
        if outside:
            sys.exit(f"error: {file} needs {sorted(outside)}, which no wheel brings")
        print(f"  {file}, {len(content):,} bytes, needs {', '.join(sorted(needed(content)))}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"error: {len(sys.argv) - 1} arguments, expected one: the wheel")
    main(Path(sys.argv[1]))
