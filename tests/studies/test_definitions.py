"""Study files: what they mean, and what is said of those that can't be run."""

import json
import re

import pytest

from sb3_flowrl.legacy import FORMER_POLICY_DEFAULTS
from studies.arguments import resolve
from studies.cost import LEANRL, MEASURED, describe_cost, estimate_cost, guess_gpu_rates, measured_rates
from studies.records import (
    RESULTS,
    Folders,
    differences,
    find_record,
    name_policy_arguments,
    to_json,
    what_none_means,
    write_atomically,
)
from studies.study import DEFINITIONS, StudyError, find_study, load_study
from tests.studies.made_up import finish, make_study


def test_runs_of_the_first_seed_come_first(tmp_path):
    study = make_study(tmp_path, seeds=[3, 1], environments=["Pendulum-v1", "MountainCarContinuous-v0"])
    assert [run.name for run in study.runs()] == [
        "Pendulum-v1_flowrl_seed3",
        "Pendulum-v1_sac_seed3",
        "MountainCarContinuous-v0_flowrl_seed3",
        "MountainCarContinuous-v0_sac_seed3",
        "Pendulum-v1_flowrl_seed1",
        "Pendulum-v1_sac_seed1",
        "MountainCarContinuous-v0_flowrl_seed1",
        "MountainCarContinuous-v0_sac_seed1",
    ]


def test_algorithm_may_have_seeds_of_its_own(tmp_path):
    study = make_study(tmp_path, seeds=[0, 1], algorithms=dict(flowrl=dict(seeds=[10]), sac=None))
    assert [run.name for run in study.runs()] == [
        "Pendulum-v1_flowrl_seed10",
        "Pendulum-v1_sac_seed0",
        "Pendulum-v1_sac_seed1",
    ]


def test_hyperparameters_of_an_algorithm_go_over_those_of_the_study(tmp_path):
    slow = dict(algo="sac", hyperparameters=dict(tau=0.001, learning_starts=7))
    study = make_study(tmp_path, algorithms=dict(sac=None, slow=slow), hyperparameters=dict(learning_starts=5, gamma=0.9))
    default, changed = study.runs()
    assert (default.algo, default.hyperparameters) == ("sac", dict(learning_starts=5, gamma=0.9))
    assert (changed.algo, changed.hyperparameters) == ("sac", dict(learning_starts=7, gamma=0.9, tau=0.001))


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(stepps=5), "stepps: Extra inputs are not permitted (it is 5)"),
        (dict(steps="many"), "steps: Input should be a valid integer (it is 'many')"),
        (dict(steps=0), "steps: Input should be greater than 0 (it is 0)"),
        (dict(steps=1e5), "steps: Input should be a valid integer (it is 100000.0)"),
        (dict(seeds=[]), "seeds: List should have at least 1 item"),
        (dict(seeds=[0, 1, 0]), "seeds: Value error, 0 is there more than once"),
        (dict(algorithms={"sac": dict(seeds=[1, 1])}), "algorithms.sac.seeds: Value error, 1 is there more than once"),
        (dict(seeds=[-1]), "seeds.0: Input should be greater than or equal to 0 (it is -1)"),
        (dict(algorithms={"SAC": None}), "algorithms.SAC.[key]: String should match pattern"),
        (dict(algorithms={"sacc": None}, baselines=["sacc"]), "rl_zoo3 has no algorithm 'sacc' (did you mean 'sac'?)"),
        (dict(algorithms={"sac": dict(tau=1)}), "algorithms.sac.tau: Extra inputs are not permitted (it is 1)"),
        (dict(baselines=["td3"]), "baselines: 'td3' is not among the study's algorithms, flowrl, sac"),
        (dict(comparisons={"both": ["sac", "td3"]}), "both: 'td3' is not among the study's algorithms, flowrl, sac"),
        (dict(environments=["Pendulum-v11"]), "gymnasium knows no 'Pendulum-v11' (did you mean 'Pendulum-v1'?)"),
        (dict(includes=["parts"]), "includes: there is no study 'parts' in "),
        (dict(gym_packages=["no_such_module"]), "gym_packages: no_such_module can't be imported"),
        (dict(evaluation=dict(every=250, episodes=3)), "evaluation.every: 250 does not divide the 600 steps"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(tmp_path, changes, message):
    with pytest.raises(StudyError) as error:
        make_study(tmp_path, **changes)
    assert message in str(error.value) and "made-up.yml" in str(error.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    with pytest.raises(StudyError) as error:
        make_study(tmp_path, steps=-1, seeds="all")
    assert "steps: " in str(error.value) and "seeds: " in str(error.value)


@pytest.mark.parametrize("text, message", [("a: [", "is not YAML"), ("- sac", "must hold keys")])
def test_file_that_is_no_study(tmp_path, text, message):
    path = tmp_path / "odd.yml"
    path.write_text(text)
    with pytest.raises(StudyError, match=message):
        load_study(path)


def test_older_definition_may_name_a_package_by_its_former_path(tmp_path):
    study = make_study(tmp_path, gym_packages=["benchmarks.study.worth"], environments=["worth/two-ways-v0"])
    assert study.gym_packages == ["studies.worth"] and study.runs()[0].gym_packages == ("studies.worth",)


def test_unknown_study_is_answered_with_those_there_are():
    with pytest.raises(StudyError, match=r"no study 'smok'.*part1, .*smoke"):
        find_study("smok")


@pytest.mark.parametrize("path", sorted(DEFINITIONS.glob("*.yml")), ids=lambda path: path.stem)
def test_our_own_studies_can_be_run(path):
    study = load_study(path)
    assert len({run.name for run in study.runs()}) == len(study.runs()) > 0
    assert all(study.includes == [] or find_study(other) for other in study.includes)


def test_runs_of_an_included_study_count_where_they_are_the_same(tmp_path):
    folders = Folders(tmp_path / "results", tmp_path / "work")
    first = make_study(tmp_path, "first")
    for run in first.runs():
        finish(first, run, folders, final=1.0)
    other_sac = dict(flowrl=None, sac=dict(hyperparameters=dict(tau=0.1)))
    second = make_study(tmp_path, "second", includes=["first"], algorithms=other_sac)
    flowrl, sac = second.runs()
    assert find_record(second, flowrl, folders, resolve) == folders.record("first", flowrl)
    assert find_record(second, sac, folders, resolve) is None


def test_result_of_another_run_is_not_taken_for_this_one(tmp_path):
    folders = Folders(tmp_path / "results", tmp_path / "work")
    study = make_study(tmp_path)
    finish(study, study.runs()[0], folders, final=1.0)
    changed = make_study(tmp_path, steps=1000)
    with pytest.raises(StudyError, match=r"flowrl_seed0.json is of another run .* steps was 600, and is 1000 in the study"):
        find_record(changed, changed.runs()[0], folders, resolve)


@pytest.mark.parametrize("name", ["part1", "diagnosis", "precision", "ablations", "extras", "paper"])
def test_studies_of_the_papers_constants_say_what_they_are(name):
    """Whatever the defaults are or become."""
    former = dict(learning_rate=3e-4, spread_coef=0.0, actor_tau=None, delay_behavior=False)
    former |= {key: value for key, value in what_none_means(FORMER_POLICY_DEFAULTS).items() if key != "policy_kwargs.net_arch"}
    for run in load_study(find_study(name)).runs():
        if run.algo == "flowrl":
            assert former.items() <= name_policy_arguments(run.hyperparameters).items(), run.name


def test_defaults_are_the_same_said_or_not(tmp_path):
    said = dict(
        learning_rate=1e-3,
        # rl_zoo3's entry for Pendulum, which it goes over, has this net_arch
        policy_kwargs="dict(optimizer_kwargs=dict(fused=True, betas=(0.5, 0.999)), net_arch=[64, 64], activation_fn=nn.ReLU,\n"
        "batch_norm=True)",
    )
    algorithms: dict = dict(flowrl=None, said=dict(algo="flowrl", hyperparameters=said))
    study = make_study(tmp_path, algorithms=algorithms, baselines=["flowrl"], hyperparameters={})
    unsaid, said_so = (resolve(run) for run in study.runs())
    assert differences(unsaid, said_so) == []
    other = {**said_so, "hyperparameters": {**said_so["hyperparameters"], "tau": 0.5}}
    assert differences(unsaid, other) == ["tau was 0.95 and is 0.5"]


def test_a_run_is_the_same_whether_a_default_or_the_study_says_so(tmp_path):
    folders = Folders(tmp_path / "results", tmp_path / "work")
    study = make_study(tmp_path, algorithms=dict(flowrl=None), baselines=["flowrl"])
    [run] = study.runs()
    finish(study, run, folders, final=1.0)
    record = json.loads(folders.record(study.name, run).read_text())
    # as it was when the authors' activations were the default, and not said by name
    former = dict(learning_rate=3e-4, tau=0.005, spread_coef=0.0)
    record["defaults"] |= {**former, "policy_kwargs.activation_fn": None, "policy_kwargs.batch_norm": False}
    write_atomically(folders.record(study.name, run), to_json(record))
    pins = dict(
        **former,
        policy_kwargs="dict(net_arch=[16, 16], activation_fn=dict(pi=nn.ELU, qf=nn.GELU), batch_norm=False,\n"
        "optimizer_kwargs=dict(fused=True))",
    )
    for changes, differs in (({}, None), (dict(tau=0.95), "tau was 0.005 and is 0.95"), (dict(w2_coef=0.1), None)):
        pinned = make_study(tmp_path, algorithms=dict(flowrl=dict(hyperparameters={**pins, **changes})), baselines=["flowrl"])
        if differs is None:
            assert find_record(pinned, pinned.runs()[0], folders, resolve) == folders.record(study.name, run)
            continue
        with pytest.raises(StudyError, match=differs):
            find_record(pinned, pinned.runs()[0], folders, resolve)
    # In the words that were used then it is found, but nothing is put beside it
    assert find_record(study, run, folders, resolve) == folders.record(study.name, run)
    with pytest.raises(StudyError, match=r"learning_rate was 0\.0003 and is 0\.001"):
        find_record(study, run, folders, resolve, adds_runs=True)


def test_file_stays_as_it_was_if_writing_fails(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\udc80")  # can't be encoded
    assert path.read_text() == "old"


def test_cost_is_updates_by_measured_rate(tmp_path):
    study = make_study(tmp_path, steps=7200, evaluation=dict(every=3600, episodes=1), seeds=[0, 1])
    text = estimate_cost(study, dict(flowrl=1.0, sac=4.0), "made up")
    assert "| flowrl | 2 | 14,400 | 1.0 | 4 |" in text and "| sac | 2 | 14,400 | 4.0 | 1 |" in text
    assert "| all | 4 | | | 5 " in text and "Rates: made up." in text
    with pytest.raises(StudyError, match="no rate of 'sac'"):
        estimate_cost(study, dict(flowrl=1.0), "made up")


def test_a_given_rate_is_added_to_the_measured_ones():
    page = describe_cost(load_study(find_study("worth")), dict(gaussian=20.0))
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| gaussian", "| flowrl |"))]
    measured = [f"{measured_rates(path)[0]['flowrl']:.1f}" for path in MEASURED]
    assert [row[3] for row in rows] == [measured[0], "20.0", measured[1], "20.0"]
    assert page.count("; gaussian as given.") == 2


def test_cost_takes_the_rates_of_the_speed_benchmark():
    for path in MEASURED:
        rates, _ = measured_rates(path)
        assert rates.keys() >= {"flowrl", "sac", "td3", "tqc"} and all(rate > 0 for rate in rates.values())
    page = describe_cost(load_study(find_study("paper")), {})
    processor, gpu = page.split("GPU hours: ")
    hours = [float(number.replace(",", "")) for number in re.findall(r"\| flowrl \| 115 \| .* \| ([\d,]+) \|", processor)]
    small, large = hours  # of HalfCheetah's dimensions, and of the dog's
    assert 500 < small < large < 10_000
    assert (
        "observations 17, actions 6" in page
        and "observations 223, actions 38" in page
        and "Nobody has measured FlowRL's" in page
    )
    assert page.strip() == (RESULTS / "paper" / "cost.md").read_text().strip()

    assert f"| sac | 115 | 115,000,000 | 725.0 | {115e6 / 725 / 3600:.0f} |" in gpu and "days of one GPU" in gpu


def test_gpu_rates_are_reported_ones_or_in_proportion_to_sacs():
    study = load_study(find_study("paper"))
    assert guess_gpu_rates(study, dict(flowrl=5.0, sac=10.0)) == {**LEANRL, "flowrl": LEANRL["sac"] / 2}
    with pytest.raises(StudyError, match="no rate of flowrl"):
        guess_gpu_rates(study, dict(sac=10.0))


def test_cost_counts_the_seeds_that_an_algorithm_has_of_its_own(tmp_path):
    study = make_study(tmp_path, seeds=[0, 1], algorithms=dict(flowrl=dict(seeds=[10]), sac=None))
    assert "| flowrl | 1 | 600 |" in estimate_cost(study, dict(flowrl=1.0, sac=1.0), "made up")


def test_record_is_json_with_a_line_for_each_evaluation():
    record = dict(a=1, evaluations=[dict(step=1, returns=[1.5]), dict(step=2, returns=[2.5])], b=dict(c=None), d=[])
    assert json.loads(to_json(record)) == record
    assert len(to_json(record).splitlines()) == 9
