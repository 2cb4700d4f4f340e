"""
The tasks of the suites, so that their ids can be registered without importing the suites.

Tests compare this list with the suites.
"""

# dm_control.suite.ALL_TASKS
DMC = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": ("balance", "balance_sparse", "swingup", "swingup_sparse", "two_poles", "three_poles"),
    "cheetah": ("run",),
    "dog": ("stand", "walk", "trot", "run", "fetch"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("upright", "swim"),
    "hopper": ("stand", "hop"),
    "humanoid": ("stand", "walk", "run", "run_pure_state"),
    "humanoid_CMU": ("stand", "walk", "run"),
    "lqr": ("lqr_2_1", "lqr_6_2"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("walk", "run", "escape", "fetch"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer6", "swimmer15"),
    "walker": ("stand", "walk", "run"),
}

# humanoid_bench.env.ROBOTS, and how HumanoidBench controls each of them
HUMANOID_BENCH_ROBOTS = {
    "h1": "pos",
    "h1hand": "pos",
    "h1simplehand": "pos",
    "h1strong": "pos",
    "h1touch": "pos",
    "g1": "torque",
}
# humanoid_bench.env.TASKS, with the steps after which episodes are truncated
HUMANOID_BENCH = dict.fromkeys(
    "balance_hard balance_simple bookshelf_hard bookshelf_simple cabinet crawl door highbar_hard highbar_simple hurdle maze "
    "package pole powerlift reach room run sit_hard sit_simple slide spoon stair stand truck walk window".split(),
    1_000,
) | dict.fromkeys("basketball cube insert_normal insert_small kitchen push".split(), 500)


def _variants(prefixes: str, tasks: str) -> list[str]:
    """List names for healthy muscles ("myo") and for sarcopenia, fatigue and tendon transfer ("myoSarc", ...)."""
    return [f"{prefix}{task}" for task in tasks.split() for prefix in prefixes.split()]


# What myosuite registers, except the one task with two agents
MYOSUITE = [
    *_variants("motor", "FingerPoseFixed-v0 FingerPoseRandom-v0 FingerReachFixed-v0 FingerReachRandom-v0"),
    *_variants(
        "myo",
        "FullBodyDirectional-v0 LegDirectionalBackward-v0 LegDirectionalForward-v0 LegDirectionalRandom-v0 MimicBimanual-v0 "
        "MimicFullbody-v0 MuscleMimicBimanual-v0 MuscleMimicFullbody-v0",
    ),
    *_variants(
        "myo myoSarc myoFati",
        "ArmReachFixed-v0 ArmReachRandom-v0 ElbowPose1D6MExoFixed-v0 ElbowPose1D6MExoRandom-v0 ElbowPose1D6MFixed-v0 "
        "ElbowPose1D6MRandom-v0 ElbowPoseTaskFixed-v0 ElbowPoseTaskRandom-v0 FingerPoseFixed-v0 FingerPoseRandom-v0 "
        "FingerReachFixed-v0 FingerReachRandom-v0 LegHillyTerrainWalk-v0 LegRoughTerrainWalk-v0 LegStairTerrainWalk-v0 "
        "LegStandRandom-v0 LegWalk-v0 TorsoExoPoseFixed-v0 TorsoPoseFixed-v0",
    ),
    *_variants(
        "myoChallenge myoSarcChallenge myoFatiChallenge",
        "BaodingP1-v1 BaodingP2-v1 Bimanual-v0 ChaseTagFBP2-v0 ChaseTagP1-v0 ChaseTagP2-v0 ChaseTagP2eval-v0 "
        "DieReorientDemo-v0 DieReorientP1-v0 DieReorientP2-v0 OslRunFixed-v0 OslRunRandom-v0 RelocateP1-v0 RelocateP2-v0 "
        "RelocateP2eval-v0 SoccerP1-v0 SoccerP2-v0 TableTennisP0-v0 TableTennisP1-v0 TableTennisP2-v0",
    ),
    *_variants(
        "myoHand myoSarcHand myoFatiHand myoReafHand",
        "KeyTurnFixed-v0 KeyTurnRandom-v0 ObjHoldFixed-v0 ObjHoldRandom-v0 PenTwirlFixed-v0 PenTwirlRandom-v0 Pose0Fixed-v0 "
        "Pose1Fixed-v0 Pose2Fixed-v0 Pose3Fixed-v0 Pose4Fixed-v0 Pose5Fixed-v0 Pose6Fixed-v0 Pose7Fixed-v0 Pose8Fixed-v0 "
        "Pose9Fixed-v0 PoseFixed-v0 PoseRandom-v0 ReachFixed-v0 ReachRandom-v0 Reorient100-v0 Reorient8-v0 ReorientID-v0 "
        "ReorientOOD-v0",
    ),
]

# mujoco_playground.registry.ALL_ENVS
PLAYGROUND = (
    "AcrobotSwingup AcrobotSwingupSparse BallInCup CartpoleBalance CartpoleBalanceSparse CartpoleSwingup "
    "CartpoleSwingupSparse CheetahRun FingerSpin FingerTurnEasy FingerTurnHard FishSwim HopperHop HopperStand HumanoidStand "
    "HumanoidWalk HumanoidRun PendulumSwingup PointMass ReacherEasy ReacherHard SwimmerSwimmer6 WalkerRun WalkerStand "
    "WalkerWalk ApolloJoystickFlatTerrain BarkourJoystick BerkeleyHumanoidJoystickFlatTerrain "
    "BerkeleyHumanoidJoystickRoughTerrain G1JoystickFlatTerrain G1JoystickRoughTerrain Go1JoystickFlatTerrain "
    "Go1JoystickRoughTerrain Go1Getup Go1Handstand Go1Footstand H1InplaceGaitTracking H1JoystickGaitTracking Op3Joystick "
    "SpotFlatTerrainJoystick SpotGetup SpotJoystickGaitTracking T1JoystickFlatTerrain T1JoystickRoughTerrain AlohaHandOver "
    "AlohaSinglePegInsertion PandaPickCube PandaPickCubeOrientation PandaPickCubeCartesian PandaOpenCabinet "
    "PandaRobotiqPushCube LeapCubeReorient LeapCubeRotateZAxis AeroCubeRotateZAxis"
).split()
