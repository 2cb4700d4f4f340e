"""MuJoCo's arrays, with one of each struct that MuJoCo has no longer."""

array_sizes = {
    "mjdata": {"qpos": ("nq",), "qvel": ("nv",), "gone_since": ("nq",)},
    "mjmodel": {"body_mass": ("nbody",), "gone_as_well": ("nbody",)},
}
