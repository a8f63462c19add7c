import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttlora.errors import UserError
from ttlora.experiments.counts import count_trained, skeleton_of
from ttlora.experiments.search.config import SearchPlan
from ttlora.experiments.search.space import Space
from ttlora.tensor_train import TTShape


@pytest.fixture(scope="module")
def auto(tmp_path_factory, architectures) -> Space:
    """The generated space of the BERT, within 2,500 bytes."""
    path = tmp_path_factory.mktemp("search") / "s.yaml"
    path.write_text(
        f"model: {architectures / 'bert'}\ntask: glue/sst2\ntargets: [query, value]\nmax_adapter_size: 2500\n"
    )
    return Space.of(SearchPlan.read(path))


class TestSizes:
    def test_generated_shapes_have_ever_more_cores(self, auto):
        assert auto.domains["shape"].values == ([24, 24], [4, 6, 6, 4], [2, 3, 4, 4, 3, 2])

    def test_matrices_of_several_sizes_have_shapes_of_their_own(self, space_of):
        assert space_of(model="llama").domains["shape"].values == (
            {"q_proj": [24, 24], "v_proj": [12, 24]},
            {"q_proj": [4, 6, 6, 4], "v_proj": [3, 4, 6, 4]},
            {"q_proj": [2, 3, 4, 4, 3, 2], "v_proj": [3, 4, 4, 3, 2]},
        )

    def test_modules_of_one_name_and_several_sizes_are_told_apart_by_their_paths(self, space_of):
        _, shape, *_ = space_of(targets="all-linear").domains["shape"].values
        assert shape == {
            "query": [4, 6, 6, 4],
            "key": [4, 6, 6, 4],
            "value": [4, 6, 6, 4],
            "attention.output.dense": [4, 6, 6, 4],
            "intermediate.dense": [6, 6, 6, 4],
            r"\d+.output.dense": [4, 6, 6, 6],
        }

    @pytest.mark.parametrize(
        "keys",
        [
            {"model": "bert"},
            {"model": "bert", "targets": "null"},
            {"model": "llama", "scoring": "prompt"},
            {"model": "llama", "scoring": "prompt", "targets": "null"},
            {"model": "bert", "targets": "all-linear"},
            {"model": "bert", "settings": "{layers_to_transform: [1], rank_pattern: {query: 2}}"},
            {"model": "bert", "settings": "{bias: all}", "r": "3"},
        ],
    )
    def test_they_are_those_of_the_adapted_model(self, keys, search):
        plan = search(**keys)
        space = Space.of(plan)
        for adapter in space.adapters[:: max(len(space.adapters) // 4, 1)]:
            recipe = plan.recipe(adapter.settings)
            assert count_trained(skeleton_of(recipe), recipe)[0] == adapter.parameters

    def test_other_methods_are_counted(self, space_of):
        space = space_of(method="lora", space="{r: [1, 3], learning_rate: {from: 1e-4, to: 1e-3}}")
        assert [adapter.parameters for adapter in space.adapters] == [4 * 48, 3 * 4 * 48]
        (adapter,) = space_of(method="head").adapters
        assert adapter.parameters == 0

    def test_shapes_of_the_users_own(self, space_of):
        space = space_of(space="{shape: [[24, 24], auto, {query: [4, 6, 24]}]}", r="2")
        sizes = [TTShape.build(24, 24, dims, 2).parameters for dims in ([24, 24], "auto", [4, 6, 24])]
        other = sizes[1]
        expected = [4 * sizes[0], 4 * sizes[1], 2 * sizes[2] + 2 * other]
        assert [adapter.parameters for adapter in space.adapters] == expected

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (
                {"space": "{shape: [[24, 24], [4, 6, 5]]}"},
                r"s.yaml: .*self.query: shape \[4, 6, 5\] has the product 120, but the 24 x 24 matrix has 576 entries",
            ),
            ({"space": "{shape: [{key: [24, 24]}]}"}, "shape of 'key' belongs to no adapted module; adapted are query"),
            ({"space": "{r: [[1, 2]]}", "shape": "[24, 24]"}, r"r=\[1, 2\] has 2 ranks, but a shape of 2 dims has 1"),
            ({"model": "/nowhere"}, "model folder /nowhere is not there"),
            ({"targets": "q_proj"}, "'q_proj' is no module of the model"),
        ],
    )
    def test_what_does_not_fit_is_one_line(self, keys, message, space_of):
        with pytest.raises(UserError, match=message) as error:
            space_of(**keys)
        assert "\n" not in str(error.value)


class TestBound:
    def test_nothing_is_larger(self, auto, space_of):
        whole = space_of()
        assert {adapter.settings["r"] for adapter in whole.adapters} == {1, 2, 4, 5, 8, 12, 16}
        kept = [adapter.settings for adapter in whole.adapters if 2 * adapter.parameters <= 2500]
        assert [adapter.settings for adapter in auto.adapters] == kept
        left_out = len(whole.adapters) - len(kept)
        note = f"{left_out} of {len(whole.adapters)} adapters are left out: they are larger than 2,500 bytes"
        assert note in auto.notes

    def test_the_smallest_adapter_itself_fits_and_a_byte_less_does_not(self, space_of):
        smallest = 2 * min(adapter.parameters for adapter in space_of().adapters)
        assert len(space_of(max_adapter_size=str(smallest)).adapters) == 1
        with pytest.raises(UserError, match=f"{smallest - 1}, and too small: .* takes {smallest} bytes") as error:
            space_of(max_adapter_size=str(smallest - 1))
        assert "\n" not in str(error.value)

    def test_a_single_candidate_is_asked_for(self, auto):
        settings = {"shape": [24, 24], "r": 16, "alpha": 4.0, "learning_rate": 1e-3}
        assert auto.candidate(settings) is None
        candidate = auto.candidate({**settings, "r": 2, "learning_rate": 1.23456e-3})
        assert candidate.settings == {**settings, "r": 2, "learning_rate": 1.23e-3}
        assert (candidate.parameters, candidate.bytes_16bit) == (4 * 96, 8 * 96)


class TestDuplicates:
    def test_ranks_that_are_clipped_alike_count_once(self, space_of):
        space = space_of(space="{shape: [[4, 6, 6, 4]], r: [2, 24, 30, 99], alpha: [1, 2]}")
        assert [adapter.settings["r"] for adapter in space.adapters] == [2, 24]
        assert space.count() == len(space.candidates(99, "random", 0)) == len(space.candidates(99, "grid", 0)) == 4
        assert "2 of 4 combinations of shape and r count once with another" in space.notes[0]
        same = [space.candidate({"shape": [4, 6, 6, 4], "r": r, "alpha": 1.0}) for r in (24, 99)]
        assert same[0] == same[1]
        assert same[0].identity == same[1].identity
        assert same[0] != space.candidate({"shape": [4, 6, 6, 4], "r": 24, "alpha": 2.0})

    def test_a_shape_that_is_there_twice_counts_once(self, space_of):
        assert len(space_of(space="{shape: [[4, 6, 6, 4], {query: [4, 6, 6, 4], value: [4, 6, 6, 4]}]}").adapters) == 1


class TestCandidates:
    @given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(0, 60))
    def test_random_ones_differ_fit_and_a_longer_list_begins_with_a_shorter_one(self, auto, seed, count, more):
        short, long = auto.candidates(count, "random", seed), auto.candidates(count + more, "random", seed)
        assert len(short) == count
        assert [candidate.settings for candidate in long[:count]] == [candidate.settings for candidate in short]
        assert len({candidate.identity for candidate in long}) == count + more
        for candidate in long:
            assert candidate.bytes_16bit <= 2500
            assert candidate == auto.candidate(candidate.settings)

    def test_a_seed_means_the_same_on_every_machine(self, auto):
        assert [candidate.settings for candidate in auto.candidates(2, "random", 0)] == [
            {"shape": [2, 3, 4, 4, 3, 2], "r": 4, "alpha": 8.0, "learning_rate": 0.000518},
            {"shape": [24, 24], "r": 5, "alpha": 4.0, "learning_rate": 0.000487},
        ]

    @given(st.integers(0, 2**32 - 1))
    def test_a_space_is_tried_to_its_end(self, finite, seed):
        found = finite.candidates(100, "random", seed)
        assert len(found) == finite.count() == 2 * 3 * 4
        assert set(found) == set(finite.candidates(100, "grid", seed))

    @pytest.fixture(scope="class")
    def finite(self, tmp_path_factory, architectures) -> Space:
        path = tmp_path_factory.mktemp("search") / "s.yaml"
        path.write_text(
            f"model: {architectures / 'bert'}\ntask: glue/sst2\ntrials: 30\n"
            "space: {r: [1, 2], alpha: [1, 2, 3], batch_size: {from: 4, to: 7}}\n"
        )
        return Space.of(SearchPlan.read(path))

    def test_fewer_than_asked_for_are_noted(self, finite):
        assert finite.notes == ("the space has 24 candidates, and 30 trials were asked for",)

    def test_a_range_that_rounding_leaves_few_numbers_ends(self, space_of):
        space = space_of(space="{learning_rate: {from: 1e-3, to: 1.02e-3}}")
        rates = sorted(candidate.settings["learning_rate"] for candidate in space.candidates(10, "random", 0))
        assert rates == [1e-3, 1.01e-3, 1.02e-3]

    def test_a_grid_has_five_points_of_a_range(self, space_of):
        space = space_of(space="{r: [1, 2], learning_rate: {from: 1e-4, to: 1e-2}}", sampler="grid", trials="7")
        assert (space.count("grid"), space.count()) == (10, None)
        found = space.candidates(99, "grid", 0)
        assert [candidate.settings["r"] for candidate in found] == [1] * 5 + [2] * 5
        assert [candidate.settings["learning_rate"] for candidate in found[:5]] == [1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2]
        assert space.notes == ("the grid has 10 candidates, of which the first 7 are tried",)


class TestLadder:
    @given(st.integers(1, 200))
    def test_it_climbs_from_the_smallest_to_the_largest(self, auto, count):
        ladder = auto.ladder(count)
        sizes = [candidate.parameters for candidate in ladder]
        assert 1 <= len(ladder) <= count
        assert sizes == sorted(sizes)
        assert len(set(ladder)) == len(ladder)
        assert sizes[0] == min(adapter.parameters for adapter in auto.adapters)
        if count >= 4:
            assert sizes[-1] == max(adapter.parameters for adapter in auto.adapters)

    def test_sizes_are_at_even_ratios_and_settings_the_same_at_each(self, space_of):
        space = space_of(space="{shape: [[24, 24]], r: {from: 1, to: 16}, learning_rate: {from: 1e-4, to: 1e-2}}")
        ladder = space.ladder(15)
        assert [candidate.settings["r"] for candidate in ladder[::3]] == [1, 2, 4, 8, 16]
        rates = [candidate.settings["learning_rate"] for candidate in ladder]
        assert rates == rates[:3] * 5
        assert rates[0] == 1e-3
        assert min(rates) < 3e-4
        assert max(rates) > 2e-3

    def test_few_settings_leave_more_sizes(self, space_of):
        space = space_of(space="{r: [1, 2, 3, 4, 5, 6], alpha: [4]}")
        assert [candidate.settings["r"] for candidate in space.ladder(25)] == [1, 2, 3, 4, 5, 6]

    def test_a_setting_of_the_head_alone(self, space_of):
        assert len(space_of(method="head").ladder(9)) == 3


class TestOverview:
    def test_what_is_shown_before_anything_runs(self, search):
        plan = search(trials="4", max_adapter_size="2500")
        space = Space.of(plan)
        overview = space.overview(plan)
        sizes = [adapter.parameters for adapter in space.adapters]
        assert (overview.candidates, overview.smallest, overview.largest) == (None, min(sizes), max(sizes))
        assert overview.notes == space.notes
        assert overview.first == tuple(space.candidates(4, "random", plan.seed))

    def test_a_target_is_looked_for_from_small_to_large(self, search):
        plan = search(target_score="0.8", trials="6")
        space = Space.of(plan)
        assert space.overview(plan).first == tuple(space.ladder(6))

    def test_optunas_trials_are_not_known_before(self, search):
        plan = search(sampler="optuna")
        assert Space.of(plan).overview(plan).first == ()
