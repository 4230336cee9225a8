"""Write the robots that Newton's wheel carries to where Isaac Lab 3 looks for them, for machines without a network.

    python benchmarks/isaaclab_robots.py assets
    ISAACSIM_ASSET_ROOT=$PWD/assets rlcore train --task Isaac-Ant presets=newton_mjwarp

They serve Isaac-Cartpole, Isaac-Ant and Isaac-Humanoid, each also ``-Direct``. Others need the assets of Isaac Sim.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

ROBOTS = {
    "cartpole_single_pendulum.usda": "IsaacLab/Robots/Classic/Cartpole/cartpole.usd",
    "ant.usda": "Robots/IsaacSim/Ant/ant_instanceable.usd",
    "humanoid.usda": "Robots/IsaacSim/Humanoid/humanoid_instanceable.usd",
}
"""Files of Newton's examples, and the paths that Isaac Lab's tasks have for the same robots."""

JOINTS = {"abdomen_x": "pelvis"} | {
    f"{side}_{theirs}": f"{side}_{ours}"
    for side in ("left", "right")
    for theirs, ours in (("knee", "shin"), ("elbow", "lower_arm"))
}
"""Joints of Newton's humanoid, and what Isaac Lab's tasks call them."""

GROUP = re.compile(r'^    def PhysicsCollisionGroup ".*?^    }\n\n?', re.MULTILINE | re.DOTALL)
"""Collision groups of Newton's humanoid, one a body: shapes of several collide in USD, and in Newton never, so that the
robot would fall through the ground."""

GROUND = "IsaacLab/Environments/Grid/default_ground_plane_checker_v1/default_ground_plane.usda"
PLANE = """\
#usda 1.0
(
    defaultPrim = "World"
    metersPerUnit = 1
    upAxis = "Z"
)

def Xform "World"
{
    def Xform "Environment"
    {
        float3 xformOp:scale = (1, 1, 1)
        uniform token[] xformOpOrder = ["xformOp:scale"]

        def Mesh "Geometry"
        {
            int[] faceVertexCounts = [4]
            int[] faceVertexIndices = [0, 1, 2, 3]
            point3f[] points = [(-50, -50, 0), (50, -50, 0), (50, 50, 0), (-50, 50, 0)]
            texCoord2f[] primvars:st = [(-25, -25), (25, -25), (25, 25), (-25, 25)] (
                interpolation = "vertex"
            )
        }
    }

    def Plane "CollisionPlane" (
        prepend apiSchemas = ["PhysicsCollisionAPI"]
    )
    {
        uniform token axis = "Z"
        uniform token purpose = "guide"
    }
}
"""
"""A ground plane, of the names that Isaac Lab looks for in its own."""


def write(root: Path) -> None:
    """Write the assets into a folder that ``ISAACSIM_ASSET_ROOT`` then names.

    Raises:
        SystemExit: Newton is not installed.
    """
    newton = importlib.util.find_spec("newton")
    if newton is None or newton.origin is None:
        raise SystemExit("Newton is not installed; run: pip install isaaclab==3.0.0")
    examples = Path(newton.origin).parent / "examples" / "assets"
    for name, place in ROBOTS.items():
        target = root / "Isaac" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        # The name of its first prim is written in two ways, of which one is not there.
        text = (examples / name).read_text().replace('defaultPrim = "cartPole"', 'defaultPrim = "cartpole"')
        text = GROUP.sub("", text)
        for theirs, ours in JOINTS.items():
            text = text.replace(f'PhysicsRevoluteJoint "{theirs}"', f'PhysicsRevoluteJoint "{ours}"')
        target.write_text(text)
    ground = root / "Isaac" / GROUND
    ground.parent.mkdir(parents=True, exist_ok=True)
    ground.write_text(PLANE)


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "assets"))
