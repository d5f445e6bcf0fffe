"""Tests that ``make soak`` runs and ``make test`` leaves out, though they are not marked.

Each takes seconds, and shows with other settings or at greater length what a quicker test beside
it shows, or what the campaigns of ``tests/faults`` do. ``tests/test_longer.py`` checks that there
are such tests.
"""

LONGER = frozenset(
    {
        "adapters/test_peftcheck.py::test_rounding_alone_is_never_called_a_difference_and_damage_always_is[gemma3-dtype0]",
        "adapters/test_peftcheck.py::test_rounding_alone_is_never_called_a_difference_and_damage_always_is[gemma3-dtype1]",
        "adapters/test_peftcheck.py::test_rounding_alone_is_never_called_a_difference_and_damage_always_is[llama-dtype1]",
        "engine/decoding/test_slotwise.py::test_greedy_completions_are_those_of_our_decoder[gemma3-dense]",
        "engine/decoding/test_slotwise.py::test_greedy_completions_are_those_of_our_decoder[gemma3-on]",
        "engine/decoding/test_slotwise.py::test_greedy_completions_are_those_of_our_decoder[llama-on]",
        "engine/test_average.py::test_a_halted_run_goes_on_with_its_mean[bema]",
        "engine/test_average.py::test_a_halted_run_goes_on_with_its_mean[exponential]",
        "engine/test_cohort.py::test_a_refilled_slot_gives_the_bits_of_a_fresh_cohort[pairs1-dtype1]",
        "engine/test_cohort.py::test_the_trunk_cache_changes_no_bit_whatever_its_limit[True-dtype2]",
        "launch/test_launchers.py::test_an_interrupted_suite_goes_on_with_two_launchers_at_once",
        "methods/test_methods.py::test_options_work_for_all_methods[LoRA+]",
        "methods/test_methods.py::test_options_work_for_all_methods[exponential]",
        "methods/test_methods.py::test_options_work_for_all_methods[last]",
        "methods/test_methods.py::test_options_work_for_all_methods[rank-stabilised]",
        "report/page/test_html.py::test_the_largest_page_is_below_six_megabytes",
        "report/sections/test_charts.py::test_very_much_data_is_thinned_and_that_is_said",
        "runs/test_experiment.py::test_an_odd_number_of_slots_is_halved_to_a_whole_one",
        "runs/test_experiment.py::test_runs_go_on_in_half_the_slots_where_memory_runs_out[5]",
        "runs/test_experiment.py::test_slots_are_halved_again_where_even_half_has_no_room_for_moments",
        "runs/test_experiment.py::test_slots_are_halved_again_where_memory_runs_out_again",
        "runs/test_experiment.py::test_slots_are_halved_where_there_is_no_room_to_begin_with",
        "runs/test_going_on.py::test_a_cohort_with_refilled_slots_ends_with_the_same_bytes[many]",
        "runs/test_programsaves.py::test_a_tuner_goes_on_to_the_bit[banks]",
        "runs/test_programsaves.py::test_a_tuner_goes_on_to_the_bit[shrink]",
        "runs/test_programsaves.py::test_a_tuner_goes_on_to_the_bit[slow]",
        "runs/test_programsaves.py::test_interrupted_runs_end_as_undisturbed_ones_to_the_bit[2]",
        "runs/test_programsaves.py::test_more_runs_beside_those_that_go_on_change_nothing_of_them[2]",
        "runs/test_programsaves.py::test_so_do_those_that_are_measured_and_stopped[3-moments1]",
        "stats/test_coverage.py::test_families_err_no_more_than_stated",
        "stats/test_coverage.py::test_permutation_tests_and_power",
        "suites/test_execution.py::test_a_killed_suite_trains_no_run_again_whose_training_was_over",
        "suites/test_execution.py::test_a_suite_that_is_killed_at_any_moment_ends_with_the_very_bytes[plain-1]",
        "test_damaged.py::test_a_damaged_suite_folder[12-0-only0]",
        "test_damaged.py::test_a_result_with_any_value_changed_is_refused_or_shown[base]",
        "test_original.py::test_a_run_that_fails_leaves_the_others_compared",
        "test_original.py::test_where_all_runs_fail_there_is_no_table",
        "trainer/test_packed.py::test_all_examples_packed_train_as_all_in_rows[coto]",
        "trainer/test_packed.py::test_all_examples_packed_train_as_all_in_rows[lora]",
        "trainer/test_packed.py::test_all_examples_packed_train_as_all_in_rows[molf]",
        "trainer/test_packed.py::test_without_padding_it_ends_at_the_engines_weights[coto]",
        "trainer/test_packed.py::test_without_padding_it_ends_at_the_engines_weights[lora]",
        "trainer/test_packed.py::test_without_padding_it_ends_at_the_engines_weights[molf]",
        "trainer/test_trl.py::test_it_ends_at_the_engines_weights_and_in_stock_peft[molf]",
    }
)
