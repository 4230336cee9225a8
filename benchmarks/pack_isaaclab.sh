#!/bin/bash
# Isaac Lab 3.0.0 on Newton for a Linux machine with a GPU, Python 3.12, torch 2.11 or newer and no network.
#
#   benchmarks/pack_isaaclab.sh OUT             # here, with a network: parts of 59 MiB, OUT/isaaclab.tar.xz.00, .01, ...
#   benchmarks/pack_isaaclab.sh --unpack SITE OUT/isaaclab.tar.xz.*                                             # there
#   PYTHONPATH=SITE ISAACSIM_ASSET_ROOT=SITE/assets rlcore train --task Isaac-Ant presets=newton_mjwarp
#
# Isaac Lab, Newton, their physics and USD are in it, and what they import to run without a picture; not torch, NumPy and
# what rlcore itself needs. Assets are those of isaaclab_robots.py: Cartpole, Ant and Humanoid.
set -eo pipefail
if [ "$1" = --unpack ]; then
    SITE=$2; shift 2; mkdir -p "$SITE"
    cat "$@" | python3 -c 'import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz").extractall(sys.argv[1])' "$SITE"
    exit
fi
OUT=$(mkdir -p "${1:?where to}" && cd "$1" && pwd); HERE=$(cd "$(dirname "$0")" && pwd); SITE=$OUT/site
PLATFORMS=$(for glibc in 2_34 2_31 2_28 2_27 2_17; do echo --platform manylinux_${glibc}_x86_64; done)
pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp $PLATFORMS \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest "$OUT/wheels" \
    isaaclab==3.0.0 newton==1.6.1 newton-usd-schemas==0.6.0 warp-lang==1.17.0 mujoco==3.12.0 mujoco-warp==3.12.0 \
    usd-exchange==3.0.1 rsl-rl-lib==5.5.1 tensordict==0.15.3 pyvers==0.2.3 hydra-core==1.3.8 omegaconf==2.3.1 lazy-loader==0.6 \
    prettytable==3.18.0 wcwidth==0.9.4 trimesh==5.2.0 meshio==5.3.5 shapely==2.2.0 rtree==1.4.1 scipy==1.18.1 attrs==26.1.0 \
    tqdm==4.70.1 glfw==2.11.0 gitpython==3.2.1 gitdb==4.0.12 smmap==5.0.3
pip download --quiet --no-deps --no-binary=:all: --dest "$OUT/wheels" antlr4-python3-runtime==4.9.3
mkdir -p "$SITE"
for wheel in "$OUT"/wheels/*.whl; do unzip -q -o "$wheel" -d "$SITE"; done
tar -xzf "$OUT"/wheels/antlr4*.tar.gz -C "$OUT" && cp -r "$OUT"/antlr4*/src/antlr4 "$SITE"
cd "$SITE"
# In the root of the package Isaac Lab keeps its sources once more.
rm -rf isaaclab/source warp/tests warp/examples newton/tests mujoco/{experimental,mjx,bin,sysid,testdata,include} \
    mujoco_warp/test_data
find . -name tests -type d -prune -exec rm -rf {} +
PYTHONPATH=$SITE python3 "$HERE/isaaclab_robots.py" assets
# Of Newton's examples only these files were needed.
rm -rf newton/examples
tar -cf - . | xz -T0 -1 -c | split -d -b 59M - "$OUT/isaaclab.tar.xz."
rm -rf "$OUT"/antlr4-* && ls -l "$OUT"/isaaclab.tar.xz.*
