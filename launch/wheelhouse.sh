#!/usr/bin/env bash
# The wheels that a GPU machine without registries needs beside its own torch, transformers and triton, and what
# these ask for: run it where there are registries, then carry the folder over.
#     bash launch/wheelhouse.sh [FOLDER [PACKAGE==VERSION …]]
# FOLDER is wheelhouse unless said otherwise; SHA256SUMS in it lists the wheels, a line each. Versions are those
# that are installed here. What is published as source only is built.
# TARGET_PYTHON=3.12 names the Python of the other machine (x86-64 Linux), EXTRAS="lora,tasks" extras of rlhf.
set -euo pipefail
folder="$(realpath -m "${1:-wheelhouse}")"
more=("${@:2}")
source "$(dirname "$0")/environment.sh"
extras="${EXTRAS-lora}"
install_rlhf "${extras:+[$extras]}"
own="$(python -c 'import sys; print("{}.{}".format(*sys.version_info))')"
target="${TARGET_PYTHON:-$own}"
pip=(python -m pip --quiet --disable-pip-version-check)
# The platforms of PyPI's wheels, newest first: glibc 2.28 is that of the oldest systems with a CUDA 12 torch.
platforms=()
for glibc in 2_28 2_27 2_26 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64)

needed() {  # a line each, NAME==VERSION
    python - "$extras" "$target" <<'PY'
import configparser
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

extras, python = sys.argv[1:]
setup = configparser.ConfigParser()
setup.read("setup.cfg")
lines = [setup["options"]["install_requires"]]
lines += [setup["options.extras_require"][extra] for extra in filter(None, extras.split(","))]
wanted = "\n".join(lines).split("\n")
target = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}


def needs(this):
    """What a package asks for under the target's Python."""
    for need in map(Requirement, requires(this.name) or []):
        if need.marker is None or any(need.marker.evaluate(target | {"extra": e}) for e in ("", *this.extras)):
            yield need


try:
    there, ahead, found = {"torch", "transformers", "triton"}, [Requirement(line) for line in wanted if line], set()
    there |= {canonicalize_name(need.name) for name in ("torch", "transformers") for need in needs(Requirement(name))}
    while ahead:
        this = ahead.pop()
        asked = (canonicalize_name(this.name), *sorted(this.extras))
        if asked[0] not in there and asked not in found:
            found.add(asked)
            ahead += needs(this)
    print("\n".join(f"{name}=={version(name)}" for name in sorted({name for name, *_ in found} | {"setuptools"})))
except PackageNotFoundError as error:
    sys.exit(f"Python {python} needs {error.name}, which is not installed here: its version is not known")
PY
}

wheel() {  # wheel NAME==VERSION: as published for the target, else built
    if "${pip[@]}" download --no-deps --only-binary :all: --implementation cp --python-version "$target" \
        "${platforms[@]}" --dest "$folder" "$1" 2>/dev/null; then
        return
    fi
    local built
    built="$(mktemp -d)"
    "${pip[@]}" wheel --no-deps --no-cache-dir --wheel-dir "$built" "$1"
    if [ "$target" != "$own" ] && ! compgen -G "$built/*-none-any.whl" >/dev/null; then
        echo "launch/wheelhouse.sh: $(basename "$built"/*.whl) is built for Python $own, TARGET_PYTHON is $target" >&2
        exit 1
    fi
    mv "$built"/*.whl "$folder"
    rm -r "$built"
}

list="$(needed)"
mkdir -p "$folder"
rm -f "$folder"/*.whl "$folder/SHA256SUMS"
for package in $list "${more[@]}"; do
    echo "$package"
    wheel "$package"
done
# from a copy, so that no build folder appears in the checkout
copy="$(mktemp -d)"
cp -r setup.cfg pyproject.toml README.md LICENSE rlhf conf "$copy"
"${pip[@]}" wheel --no-deps --wheel-dir "$folder" "$copy"
rm -r "$copy"
(cd "$folder" && sha256sum -- *.whl >SHA256SUMS)
echo "$folder: $(wc -l <"$folder/SHA256SUMS") wheels, $(du -cm "$folder"/*.whl | tail -1 | cut -f1) MB for Python $target; there:"
echo "    python -m pip install --no-index --find-links $(basename "$folder") 'rlhf${extras:+[$extras]}' ${more[*]%%==*}"
