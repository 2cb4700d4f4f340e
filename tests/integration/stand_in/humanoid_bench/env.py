"""The environment, and the tasks, whose ``step`` and ``render`` are what the environment's come down to."""

import tempfile
from pathlib import Path

import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box
from gymnasium.utils import EzPickle

from humanoid_bench.dmc_deps import dmc_sizes
from humanoid_bench.mjx import flax_to_torch  # noqa: F401

MODEL = """
<mujoco>
  <option timestep="0.002"/>
  <worldbody>
    <light pos="0 0 3"/>
    <camera name="cam_default" pos="0 -3 1" xyaxes="1 0 0 0 0.3 1"/>
    <geom type="plane" size="5 5 .1" rgba=".8 .8 .8 1"/>
    <body pos="0 0 1">
      <joint name="hinge" axis="0 1 0"/>
      <geom type="capsule" fromto="0 0 0 0 0 .5" size=".05" mass="1" rgba=".2 .2 .8 1"/>
    </body>
  </worldbody>
  <actuator><position name="motor" joint="hinge" kp="5" ctrlrange="-.5 1.5"/></actuator>
</mujoco>
"""


class Task:
    max_episode_steps = 1000

    def __init__(self, env):
        self.env = env
        if env.render_mode is not None:
            env.viewer = env.mujoco_renderer._get_viewer(env.render_mode)

    def observe(self):
        return np.concatenate([self.env.data.qpos, self.env.data.qvel])

    def reset_model(self):
        return self.observe()

    def step(self, action):
        low, high = self.env.action_low, self.env.action_high
        self.env.do_simulation((action + 1) / 2 * (high - low) + low, self.env.frame_skip)
        qpos = self.env.data.qpos
        return self.observe(), np.cos(qpos[0]), np.abs(qpos[0]) > 1.2, False, {}

    def render(self):
        return self.env.mujoco_renderer.render(self.env.render_mode, self.env.camera_id, self.env.camera_name)


class Reach(Task):
    """Draws its goal from numpy's global generator, and marks it."""

    def reset_model(self):
        self.goal = np.random.uniform(-1, 1, size=3)
        return self.observe()

    def observe(self):
        return np.concatenate([super().observe(), getattr(self, "goal", np.zeros(3))])

    def render(self):
        self.env.viewer.add_marker(pos=self.goal, size=0.05, objid=789, rgba=(0.8, 0.28, 0.28, 1.0), label="")
        return super().render()


class Push(Task):
    max_episode_steps = 500


TASKS = {"walk": Task, "reach": Reach, "push": Push}


class HumanoidEnv(MujocoEnv, EzPickle):
    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, robot=None, control=None, task=None, render_mode="rgb_array", width=256, height=256):
        EzPickle.__init__(self, metadata=self.metadata)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{robot}_{control}_{task}.xml"
            path.write_text(MODEL)
            size = 5 if task == "reach" else 2
            space = Box(-np.inf, np.inf, (size,), np.float64)
            super().__init__(
                str(path), 10, space, render_mode=render_mode, width=width, height=height, camera_name="cam_default"
            )
        self.action_low, self.action_high = self.action_space.low, self.action_space.high
        self.action_space = Box(-1, 1, self.action_space.shape, np.float32)
        self.task = TASKS[task](self)
        self.named = {
            field: getattr(struct, field)
            for name, struct in (("mjdata", self.data), ("mjmodel", self.model))
            for field in dmc_sizes.array_sizes[name]
        }

    def step(self, action):
        return self.task.step(action)

    def reset_model(self):
        self.set_state(self.init_qpos + self.np_random.uniform(-0.01, 0.01, size=self.model.nq), self.init_qvel)
        return self.task.reset_model()

    def render(self):
        return self.task.render()
