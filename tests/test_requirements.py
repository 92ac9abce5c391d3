"""What memo answers for, requirement by requirement and fault by fault, against the tests that show it.

A row without a test, or with one that is gone, fails. So does a measured behaviour of another library or a requirement
of the memory store that has no row. What is promised for stores that do not exist yet has no row yet.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

PROMISES = {
    "1 no stale fill: a key": ["flow/test_no_stale_fill.py", "machines/test_aside_machine.py"],
    "1 no stale fill: a tag": [
        "decorator/test_tags.py::test_a_tag_that_is_invalidated_during_a_load_keeps_its_result_out"
    ],
    "1 no stale fill: a whole function": [
        "flow/test_no_stale_fill.py::test_a_load_that_a_write_overtook_is_returned_and_not_stored"
    ],
    "1 no stale fill: awaited": [
        "flow/test_no_stale_fill.py::test_a_load_that_a_write_overtook_is_returned_and_not_stored_async"
    ],
    "2 no wrong hit": [
        "keys/test_encode.py::test_one_encoding_if_and_only_if_the_same",
        "keys/test_calls.py::test_two_calls_share_exactly_if_they_are_equal_and_of_equal_types",
    ],
    "2 what cannot be told apart is refused": [
        "decorator/test_bad_input.py::test_an_argument_that_cannot_be_told_apart_is_refused_with_paste_ready_advice"
    ],
    "2 keys are the same in every process": [
        "keys/test_golden.py::test_encodings_are_the_same_in_every_process",
        "keys/test_calls.py::test_keys_are_the_same_in_every_process_and_for_every_hash_seed",
    ],
    "3 a hit returns what the miss returned": ["machines/test_parity_machine.py", "stores/test_edge_cases.py"],
    "4 one load per key": [
        "flow/test_single_flight.py::test_sixty_four_threads_make_one_load",
        "flow/test_single_flight.py::test_a_thousand_tasks_make_one_load",
    ],
    "4 cancelling one caller harms no other": [
        "flow/test_cancellation.py::test_cancelling_any_callers_at_any_moment_serves_the_rest"
    ],
    "5 the cache never makes it worse": [
        "flow/test_store_failures.py::test_when_everything_fails_the_function_is_called"
    ],
    "5 what could not be invalidated is reported": [
        "flow/test_store_failures.py::test_helpers_report_what_could_not_be_done"
    ],
    "6 time is a parameter": ["stores/test_ttl.py", "stores/test_edge_cases.py"],
}

STORE = {
    "ttl": ["stores/test_ttl.py"],
    "LRU": ["stores/test_lru.py", "machines/test_lru_machine.py"],
    "concurrent increment": ["stores/test_increment.py::test_eight_threads_lose_nothing"],
    "statistics": ["stores/test_statistics.py"],
    "patterns": ["stores/test_patterns.py"],
    "save": ["stores/test_save.py"],
    "load": ["stores/test_load.py"],
    "cleanup": ["stores/test_cleanup.py"],
    "thread safety with RLock": ["stores/test_thread_safety.py"],
    "edge cases": ["stores/test_edge_cases.py"],
}

MEASURED = {
    number: [f"peers/test_measured.py::test_m{number:02}_{name}"]
    for number, name in {
        1: "stale_set",
        2: "kwargs",
        3: "key_collisions",
        4: "elided_str",
        5: "hash_seed",
        6: "identity_dependent_key",
        7: "async_cancel",
        8: "leader_raises",
        9: "same_key_re_entrancy",
        10: "self_leak",
        11: "method_collision",
        12: "aliasing",
        13: "freezegun",
        14: "fork_during_a_load",
        16: "glob_injection",
        17: "wrong_kind_of_function",
        18: "mypy_strict",
        20: "late_loader_against_new_entry",
        21: "none",
        22: "loop_bound_ttl",
        23: "reading_statistics_changes_nothing",
        24: "hijacked_kwargs",
        25: "address_reuse",
        26: "methods_follow_identity_not_state",
    }.items()
}

FAULTS = {
    # time
    "wall clock jumps": ["stores/test_edge_cases.py"],
    "ttl 0, negative, NaN, infinite, too long, bool": [
        "stores/test_ttl.py",
        "flow/test_policy.py::test_an_option_that_is_out_of_range_is_an_error_at_decoration_that_names_the_function",
    ],
    "equal timestamps": ["stores/test_edge_cases.py", "machines/test_store_machine.py"],
    # process, threads, event loops
    "fork with a lock held": ["flow/test_fork.py::test_forks_while_threads_hammer_the_store"],
    "fork with a leader in flight": ["flow/test_fork.py::test_a_child_answers_a_key_that_its_parent_is_loading"],
    "event loop closed or changed": [
        "flow/test_loops.py::test_a_hundred_loops_one_after_another",
        "flow/test_loops.py::test_a_flight_whose_loop_was_closed_is_replaced",
    ],
    "leader task cancelled": ["flow/test_cancellation.py::test_cancelling_the_first_caller_cancels_no_other"],
    "waiter cancelled or timed out": [
        "flow/test_cancellation.py::test_cancelling_a_waiter_cancels_no_other",
        "flow/test_cancellation.py::test_wait_for_ends_only_its_own_caller",
    ],
    "a coroutine or generator under the wrong kind of function": [
        "decorator/test_bad_input.py::test_generators_are_refused_at_decoration",
        "flow/test_policy.py::test_a_result_that_can_be_used_only_once_is_an_error",
    ],
    "context variables": ["flow/test_context.py::test_two_tenants_whose_key_says_so_never_meet"],
    "interpreter exit with a load running": ["flow/test_exit.py::test_exit_is_silent"],
    "thread killed": [
        "flow/test_interrupts.py::test_a_leader_that_is_killed_by_an_asynchronous_exception_keeps_nobody_waiting"
    ],
    "free-threaded Python: a hit takes the lock": [
        "decorator/test_without_a_gil.py::test_without_a_gil_a_hit_takes_the_lock"
    ],
    "decorated function pickled, copied, weakly referenced": [
        "decorator/test_introspection.py::test_pickles_by_reference",
        "decorator/test_introspection.py::test_copies_are_the_same_object",
        "decorator/test_introspection.py::test_it_can_be_referenced_weakly",
    ],
    # single-flight, callbacks, re-entrancy
    "leader raises": ["flow/test_leader_fails.py::test_followers_get_the_same_error_object"],
    "leader raises: tracebacks do not grow": [
        "flow/test_leader_fails.py::test_an_outcome_that_is_raised_a_thousand_times_does_not_grow"
    ],
    "leader is interrupted": [
        "flow/test_leader_fails.py::test_followers_of_a_leader_that_was_interrupted_elect_another",
        "flow/test_leader_fails.py::test_followers_of_a_leader_that_was_interrupted_elect_another_async",
    ],
    "leader hangs": [
        "flow/test_single_flight.py::test_a_follower_that_has_waited_long_enough_loads_by_itself",
        "flow/test_single_flight.py::test_a_task_that_has_waited_long_enough_loads_by_itself",
    ],
    "recursion, same key": ["flow/test_recursion.py::test_directly", "flow/test_recursion.py::test_directly_async"],
    "recursion, other key": ["flow/test_recursion.py::test_other_keys_work_to_a_sixth_of_the_recursion_limit"],
    "two threads that want each other's keys": ["flow/test_recursion.py::test_two_threads_that_want_each_others_keys"],
    "stale set": [
        "flow/test_no_stale_fill.py::test_in_no_interleaving_do_three_callers_and_an_invalidation_disagree",
    ],
    "exceptions from the key function": [
        "keys/test_calls.py::test_what_a_key_callable_raises_is_raised_and_the_function_is_not_called"
    ],
    "exceptions from a log hook": ["flow/test_counting.py::test_a_logging_handler_that_raises_does_not_fail_the_call"],
    "user code under our lock": ["stores/test_thread_safety.py::test_user_code_never_runs_while_the_lock_is_held"],
    "finalizers": ["stores/test_thread_safety.py::test_finalizers_may_use_the_store"],
    "signal handler": [
        "stores/test_thread_safety.py::test_real_signals_may_use_the_store",
        "flow/test_recursion.py::test_a_signal_handler_that_calls_the_function_at_any_moment",
    ],
    "KeyboardInterrupt in the middle": [
        "flow/test_interrupts.py::test_interrupted_at_every_point",
        "stores/test_thread_safety.py::test_ctrl_c_at_any_moment_leaves_the_lock_free_and_the_store_sound",
    ],
    "a logging handler re-enters": [
        "flow/test_recursion.py::test_a_logging_handler_that_calls_the_function_during_its_load"
    ],
    # save and load, payloads
    "save and load crash or are corrupt": [
        "stores/test_save.py::test_a_failure_at_any_step_leaves_the_file_as_it_was",
        "stores/test_load.py",
    ],
    "a value that cannot be pickled": [
        "stores/test_save.py::test_a_value_that_cannot_be_pickled",
        "flow/test_store_failures.py::test_a_value_that_the_serializer_refuses_is_returned_and_leaves_no_lease",
    ],
    "undecodable payload": ["stores/test_statistics.py::test_misses_and_undecodable_values_of_a_serializer"],
    # keys and arguments
    "collision by joining": ["keys/test_template.py::test_two_fields_never_run_together"],
    "1, 1.0, True, '1', -0.0, NaN": ["keys/test_calls.py::test_arguments_of_other_types_or_values_never_share"],
    "default against explicit, positional against keyword": [
        "keys/test_binding.py::test_every_call_form_is_bound_as_python_and_signature_bind_do",
        "keys/test_calls.py::test_an_omitted_default_and_the_same_value_are_one_call",
    ],
    "unhashable arguments": ["keys/test_calls.py::test_equal_containers_are_one_argument_however_they_were_made"],
    "unstable arguments": ["keys/test_encode.py::test_what_cannot_be_told_apart_is_refused"],
    "an argument changed by the function": ["keys/test_calls.py::test_the_key_is_taken_before_the_call"],
    "unicode": ["keys/test_encode.py::test_every_surrogate_has_its_own_encoding_that_is_utf8"],
    "huge arguments": ["keys/test_encode.py::test_huge_numbers_and_bytes"],
    "two functions of one name": ["decorator/test_reload.py::test_two_functions_with_one_name_never_share"],
    "instances are not kept alive": [
        "decorator/test_methods.py::test_an_instance_is_freed_as_soon_as_nobody_else_holds_it"
    ],
    # memory store, invalidation, overload
    "caller changes a returned value": ["machines/test_store_machine.py"],
    "invalidate a key during its load": [
        "flow/test_no_stale_fill.py::test_who_was_waiting_already_is_given_the_overtaken_value"
    ],
    "refresh that ends after a newer one": [
        "flow/test_no_stale_fill.py::test_a_refresh_that_another_overtook_does_not_overwrite_it"
    ],
    "refresh finishing after a newer set": [
        "freshness/test_windows.py::test_refresh_finishing_after_a_newer_set_does_not_overwrite_it"
    ],
    "refresh pile-up": ["freshness/test_background.py::test_a_full_queue_declines"],
    "many keys expire together": ["freshness/test_spread.py::test_what_was_stored_together_does_not_expire_together"],
    "context variables of a background refresh": [
        "freshness/test_windows.py::test_a_background_refresh_runs_in_an_empty_context",
        "freshness/test_windows.py::test_a_background_refresh_runs_in_an_empty_context_async",
    ],
    "interpreter exit with refresh running": [
        "freshness/test_background.py::test_interpreter_exit_with_refresh_running_is_not_delayed_and_silent"
    ],
    "fork with a refresh running": ["freshness/test_background.py::test_a_forked_child_begins_with_an_empty_queue"],
    "a finalizer during the setting of a context variable": [
        "flow/test_context.py::test_a_finalizer_may_call_a_cached_function_while_a_context_variable_is_being_set"
    ],
    "thundering herd": ["flow/test_single_flight.py::test_tasks_of_loops_in_eight_threads_make_one_load"],
    "random-key flood": [
        "stores/test_thread_safety.py::test_a_flood_of_new_keys_leaves_nothing_behind_but_max_size_entries"
    ],
    "clear and iterate under writers": ["stores/test_thread_safety.py::test_all_operations_from_many_threads"],
    "counts under threads": ["stores/test_statistics.py::test_counts_are_exact_under_threads"],
    # security, as far as memory and keys go
    "a password in a URL": ["decorator/test_bad_input.py::test_a_password_in_a_refused_url_is_never_shown"],
    "values in log lines": [
        "flow/test_counting.py::test_each_kind_of_failure_is_logged_once_without_arguments_or_values"
    ],
    "file permissions": ["stores/test_save.py::test_the_file_is_its_owners_only_whatever_the_umask"],
    "a machine that cannot fail": ["machines/test_mutants.py::test_a_machine_catches"],
}

FRESHNESS = {
    "windows: fresh, stale, kept; failing and recovering; invalidated during a refresh": [
        "machines/test_windows_machine.py"
    ],
    "stale-while-revalidate": ["freshness/test_windows.py::test_a_stale_result_is_served_at_once_and_refreshed_behind"],
    "one refresh of a key at a time": ["freshness/test_windows.py::test_no_more_than_one_refresh_of_a_key_at_a_time"],
    "stale-if-error": ["freshness/test_windows.py::test_an_old_result_is_returned_in_the_place_of_an_error"],
    "no stale fill from a refresh": [
        "flow/test_no_stale_fill.py::test_in_no_interleaving_does_a_refresh_behind_callers_store_what_an_invalidation_has_overtaken",
        "freshness/test_windows.py::test_refresh_finishing_after_an_invalidation_stores_nothing",
        "freshness/test_windows.py::test_refresh_finishing_after_an_invalidation_stores_nothing_async",
    ],
    "what was invalidated is not served stale": [
        "freshness/test_windows.py::test_what_was_invalidated_is_not_served_stale",
        "freshness/test_windows.py::test_an_invalidation_during_a_failing_load_leaves_nothing_to_serve",
    ],
    "early refresh": [
        "freshness/test_spread.py::test_refresh_times_have_the_distribution_of_the_paper",
        "freshness/test_spread.py::test_a_result_that_is_due_is_served_and_refreshed_behind",
    ],
    "jitter": ["freshness/test_spread.py::test_jitter_shortens_by_a_share_that_is_spread_evenly"],
    "workers and queue are bounded": [
        "freshness/test_background.py::test_no_more_than_four_run_at_once_and_the_rest_waits",
        "freshness/test_background.py::test_a_full_queue_declines",
        "freshness/test_windows.py::test_too_many_refreshes_at_once_are_left_to_later_calls",
    ],
    "windows survive a save": ["freshness/test_windows.py::test_windows_survive_a_save_and_a_load"],
}

SEEN = {
    "report: every function, added up by name": [
        "test_report.py::test_every_decorated_function_has_a_row_with_what_its_own_stats_say",
        "test_report.py::test_functions_of_one_name_are_added_up",
    ],
    "report: a table of 80 columns": [
        "test_report.py::test_the_table_shows_calls_ratio_load_time_and_time_saved",
        "test_report.py::test_no_line_is_ever_longer_than_80_columns",
    ],
    "report: advice for every reason and kind": [
        "test_report.py::test_what_is_actionable_is_said_once_with_its_number_and_what_to_do",
        "test_report.py::test_the_kinds_of_errors_that_are_counted_all_have_advice",
    ],
    "report and metrics: no values, no arguments": [
        "test_report.py::test_no_argument_key_value_or_error_text_gets_into_a_report",
        "integrations/test_prometheus.py::test_no_argument_key_value_or_error_text_is_exported",
        "integrations/test_opentelemetry.py::test_no_argument_key_value_or_error_text_is_exported",
    ],
    "metrics: Prometheus, by a real scrape": [
        "integrations/test_prometheus.py::test_a_scrape_has_every_counter_of_a_function",
        "integrations/test_prometheus.py::test_names_types_and_units_follow_the_conventions",
    ],
    "metrics: OpenTelemetry, by a reader in memory": [
        "integrations/test_opentelemetry.py::test_a_collection_has_every_counter_of_a_function",
        "integrations/test_opentelemetry.py::test_names_units_and_kinds_follow_the_conventions",
    ],
    "metrics: no counter goes down": [
        "integrations/test_metrics.py::test_no_value_of_any_metric_ever_goes_down",
        "integrations/test_metrics.py::test_a_reader_that_is_overtaken_leaves_no_older_numbers_behind",
    ],
    "command: demo": [
        "test_cli.py::test_a_cold_pass_misses_every_file_and_a_warm_one_hits_every_file",
        "test_cli.py::test_an_edit_is_seen_after_the_invalidation_and_not_before",
        "test_cli.py::test_a_stampede_of_eight_threads_makes_one_load",
        "test_cli.py::test_a_result_past_its_ttl_is_served_while_a_new_one_is_loaded",
    ],
    "command: a terminal of 80 columns": [
        "test_cli_terminal.py::test_on_a_terminal_a_progress_bar_is_shown_and_is_gone_in_the_end",
        "test_cli_terminal.py::test_no_line_on_a_terminal_of_80_columns_is_longer",
        "test_cli_terminal.py::test_a_terminal_has_styles_unless_no_color_is_set",
    ],
    "command: a pipe": ["test_cli_terminal.py::test_a_pipe_gets_no_escape_codes_and_no_progress"],
    "command: exit codes": [
        "test_cli_terminal.py::test_ctrl_c_on_a_terminal_leaves_it_clean",
        "test_cli.py::test_a_reader_that_goes_away_ends_the_command_quietly",
        "test_cli.py::test_unknown_commands_and_options_are_errors_that_suggest_what_was_meant",
    ],
    "command: without its extra": ["test_cli.py::test_without_the_extra_the_command_says_what_to_install"],
}

MANY = {
    "one bulk read, one call with the missing ids, in order": [
        "many/test_results.py::test_only_missing_ids_are_loaded_in_one_call_in_order_as_a_list",
        "many/test_bulk.py::test_one_call_asks_each_thing_once",
        "many/test_bulk.py::test_one_call_asks_each_thing_once_async",
    ],
    "duplicates and order": ["many/test_results.py::test_the_result_is_in_the_order_of_the_ids_and_has_each_once"],
    "ids that are left out": [
        "many/test_results.py::test_ids_that_the_function_leaves_out_are_absent_and_asked_for_again",
        "many/test_results.py::test_an_old_entry_of_an_id_that_is_left_out_goes",
    ],
    "partial failure": [
        "many/test_results.py::test_an_error_reaches_the_caller_and_nothing_is_stored_but_what_was",
        "many/test_bulk.py::test_a_value_that_cannot_be_stored_does_not_hinder_the_others",
        "many/test_bulk.py::test_keys_that_were_read_before_a_failure_are_served",
    ],
    "no stale fill, for each id": [
        "many/test_flights.py::test_an_id_that_is_invalidated_during_the_load_is_not_stored",
        "many/test_flights.py::test_an_id_that_is_invalidated_during_the_load_is_not_stored_async",
        "many/test_machine.py::TestTogether",
    ],
    "one load per id at a time": [
        "many/test_flights.py::test_ids_that_another_call_is_loading_are_waited_for",
        "many/test_flights.py::test_overlapping_tasks_load_each_id_once",
    ],
    "overlapping calls do not wait for ever": [
        "many/test_flights.py::test_two_calls_with_overlapping_ids_never_wait_for_each_other_for_ever",
        "many/test_flights.py::test_a_call_inside_a_load_is_inside_of_all_its_ids",
    ],
    "cancellation": [
        "many/test_flights.py::test_a_caller_that_is_cancelled_harms_nobody",
        "many/test_flights.py::test_when_nobody_waits_any_more_the_load_is_cancelled_and_its_ids_are_free",
    ],
    "against a model": ["many/test_machine.py::TestAlone", "many/test_machine.py::TestAloneAwaited"],
}

INVALIDATES = {
    "by names, by call, by tags": [
        "test_invalidates.py::test_the_arguments_of_the_same_names_are_the_targets",
        "test_invalidates.py::test_call_gives_positional_arguments_keyword_arguments_or_nothing",
        "test_invalidates.py::test_tags_are_templates_over_the_writers_parameters",
    ],
    "only after success": [
        "test_invalidates.py::test_a_writer_that_raises_invalidates_nothing",
        "test_invalidates.py::test_an_async_writer_that_raises_or_is_cancelled_invalidates_nothing",
        "test_invalidates.py::test_the_old_result_is_there_while_the_write_goes_on_and_gone_when_it_returns",
    ],
    "no stale fill": [
        "test_invalidates.py::test_a_load_that_began_during_the_write_is_not_stored_after_it",
        "test_invalidates.py::test_a_load_that_began_during_the_write_is_not_stored_after_it_async",
    ],
    "a failure is loud and says what happened": [
        "test_invalidates.py::test_an_invalidation_that_fails_says_that_the_write_succeeded",
        "test_invalidates.py::test_an_invalidation_that_fails_says_that_the_write_succeeded_async",
    ],
    "methods, classmethods, staticmethods": [
        "test_invalidates.py::test_methods_invalidate_those_of_their_instance_and_class",
        "test_invalidates.py::test_classmethods_and_staticmethods_are_writers_too",
    ],
}

CONFIGURATION = {
    "stores by name, URL and object": [
        "config/test_configure.py::test_the_default_is_what_functions_use_that_name_none",
        "config/test_configure.py::test_stores_are_used_by_their_names",
    ],
    "all or nothing": ["config/test_configure.py::test_a_bad_entry_is_named_and_changes_nothing"],
    "late resolution": [
        "config/test_configure.py::test_functions_may_be_decorated_before_anything_is_configured",
        "config/test_configure.py::test_nothing_is_made_before_the_first_call_that_needs_it",
        "test_config.py::test_a_name_may_be_configured_later_so_only_its_first_call_asks_for_it",
    ],
    "the environment": [
        "config/test_configure.py::test_the_environment_says_what_configure_does_not",
        "config/test_configure.py::test_a_bad_variable_is_an_error_of_the_first_call_that_names_it",
    ],
    "schemes of other distributions": [
        "config/test_urls.py::test_a_scheme_that_a_distribution_registers_makes_its_stores",
        "config/test_urls.py::test_what_cannot_be_imported_is_a_clear_error_of_the_first_call",
    ],
    "no password in an error": ["config/test_urls.py::test_no_password_is_shown_wherever_a_url_is_refused"],
    "reconfiguration": [
        "config/test_configure.py::test_functions_that_go_by_a_name_find_their_store_again",
        "config/test_configure.py::test_a_store_that_is_still_named_keeps_its_entries",
        "config/test_configure.py::test_threads_that_configure_and_threads_that_call_never_disagree",
    ],
    "disabled": [
        "config/test_switching.py::test_while_disabled_calls_go_straight_to_the_function",
        "config/test_switching.py::test_helpers_act_on_the_store_while_disabled",
    ],
    "override": ["config/test_switching.py::test_while_overridden_every_function_uses_that_store"],
    "nested and overlapping switches": [
        "config/test_switching.py::test_the_last_one_entered_wins",
        "config/test_switching.py::test_they_may_be_left_in_any_order",
        "config/test_switching.py::test_switches_that_overlap_in_threads_leave_everything_as_it_was",
    ],
    "switches leave no slower code behind": [
        "config/test_switching.py::test_the_very_same_code_is_there_again_afterwards"
    ],
    "each store counts its own time": ["config/test_places.py::test_a_store_counts_calls_only_while_they_are_its_own"],
    "close and aclose": ["config/test_closing.py"],
    "the sweeper is not starved": [
        "stores/test_cleanup.py::test_stores_that_come_all_the_time_do_not_keep_the_others_waiting"
    ],
}

DOCS = {
    "every block runs": ["test_docs.py::test_the_code_runs_and_prints_what_is_shown_below_it"],
    "the first screen of the README": [
        "test_docs.py::test_the_first_screen_of_the_readme_is_a_sentence_four_bullets_an_example_and_what_memo_is_not_for",
        "test_docs.py::test_the_readme_gives_a_newcomer_two_commands_of_one_line",
    ],
    "the test file of the tutorial": ["test_docs.py::test_the_test_file_of_the_tutorial_passes"],
    "tables of equivalents": ["test_docs.py::test_a_newcomer_from_another_library_finds_each_answer"],
    "a reference made from the docstrings": [
        "test_site.py::test_every_public_name_is_in_the_reference_that_is_made_from_the_docstrings",
        "test_site.py::test_each_of_them_is_shown_with_its_docstring",
    ],
    "a site built by one command": [
        "test_site.py::test_one_command_builds_a_page_of_every_document",
        "test_site.py::test_the_continuous_integration_builds_the_site_with_that_command",
        "test_site.py::test_pages_load_nothing_from_other_hosts",
    ],
}

# The test kit, and stores of one's own.
KIT = {
    "four methods are a whole store: the contract and the machine": [
        "stores/test_custom_store.py::TestDictMachine",
        "stores/test_custom_store.py::TestAwaitedDictMachine",
        "stores/test_custom_store.py::TestPickledMachine",
    ],
    "a custom store: what its methods raise": [
        "stores/test_custom_store.py::test_what_the_four_methods_raise_is_reported_with_its_cause",
        "stores/test_custom_store.py::test_reads_and_fills_that_fail_are_counted_and_the_call_goes_on",
        "stores/test_custom_store.py::test_an_invalidation_that_fails_is_reported_and_has_voided_the_lease",
    ],
    "a custom store: leases, tags and owners": [
        "stores/test_custom_store.py::test_two_functions_of_one_name_never_share",
        "stores/test_custom_store.py::test_a_lease_that_two_loads_share_bears_the_tags_of_both",
    ],
    "a custom store: instances and functions that die": [
        "stores/test_custom_store.py::test_instances_have_entries_of_their_own_and_leave_with_later_writes",
        "stores/test_custom_store.py::test_a_shared_store_refuses_instances_that_count_by_identity",
        "stores/test_custom_store.py::test_a_function_that_is_gone_leaves_its_counts_and_not_its_entries",
    ],
    "a custom store: windows": ["stores/test_custom_store.py::test_a_stale_result_is_served_and_refreshed"],
    "a custom store: threads and forks": [
        "stores/test_custom_store.py::test_counts_are_exact_under_threads",
        "stores/test_custom_store.py::test_the_child_of_a_fork_finds_the_lock_free",
    ],
    "a complete custom store that lives only in the docs": [
        "testing/test_custom_store_page.py::test_the_store_passes_the_contract_and_the_machine",
        "testing/test_custom_store_page.py::test_the_page_has_a_store_and_its_test_file_and_they_are_short",
    ],
    "a store by hand, and one planted defect at a time": [
        "testing/test_planted_defects.py::test_a_defect_is_seen_by_the_test_that_names_it_and_by_the_machine",
        "testing/test_planted_defects.py::test_without_a_defect_all_pass",
    ],
    "failures that help": [
        "testing/test_planted_defects.py::test_a_failure_of_the_contract_is_a_sentence_and_shows_both_sides",
        "testing/test_planted_defects.py::test_a_failure_of_the_machine_ends_with_the_steps_that_led_to_it",
    ],
    "a store that fails, delays and corrupts": [
        "testing/test_faulty_store.py::test_each_operation_of_a_store_fails_by_its_name_on_both_sides",
        "testing/test_faulty_store.py::test_an_event_is_waited_for",
        "testing/test_faulty_store.py::test_a_value_that_cannot_be_decoded_is_not_there_and_removed",
        "testing/test_faulty_store.py::test_what_it_cannot_be_told_is_an_error_that_says_what_is_allowed",
    ],
    "a slow data source that counts": ["testing/test_data_store.py"],
    "plugin: every test starts with empty stores": [
        "testing/test_plugin.py::test_every_test_starts_with_empty_stores",
        "testing/test_plugin.py::test_stores_that_others_share_are_emptied_if_the_settings_say_so",
    ],
    "plugin: disable, freeze, inspect": [
        "testing/test_plugin.py::test_the_fixture_that_switches_caching_off",
        "testing/test_plugin.py::test_the_fixture_that_moves_time",
        "testing/test_plugin.py::test_the_fixture_that_counts",
    ],
    "plugin: out of the way": [
        "testing/test_plugin.py::test_it_can_be_left_out",
        "testing/test_plugin.py::test_it_runs_under_xdist",
        "testing/test_plugin.py::test_it_adds_nothing_to_tests_that_do_not_use_it",
    ],
}

# Rows of the fault list about a store that fails, as a store in memory can show them.
FAULTS |= {
    f"a store: {name}": [f"testing/test_faults.py::{test}" for test in tests]
    for name, tests in {
        "down at the start": [
            "test_a_store_that_is_down_at_the_start_is_used_as_soon_as_it_is_back",
            "test_a_store_that_is_down_at_the_start_is_used_as_soon_as_it_is_back_async",
        ],
        "dies mid-run, restarts empty": ["test_a_store_that_restarts_empty_between_lease_and_fill_refuses_the_fill"],
        "outage floods the origin": [
            "test_a_store_outage_does_not_flood_the_origin",
            "test_a_store_outage_does_not_flood_the_origin_async",
        ],
        "full": ["test_a_store_that_is_full_is_read_and_invalidated_and_takes_nothing_new"],
        "corrupt payload": ["test_a_payload_that_cannot_be_decoded_is_a_miss_whatever_the_decoder_raises"],
        "lost reply": [
            "test_a_lost_reply_to_a_fill_leaves_the_right_value_or_none",
            "test_a_lost_reply_to_an_invalidation_is_raised_though_it_was_done",
        ],
        "comes and goes": ["test_a_store_that_comes_and_goes_lets_no_error_escape_and_nothing_old_be_read"],
    }.items()
}

# What users see of the file store.
CONFIGURATION |= {
    "files by URL": [
        "config/test_file_urls.py::test_a_file_url_says_what_the_store_is_like",
        "config/test_file_urls.py::test_what_is_not_allowed_is_a_clear_error_before_anything_is_opened",
        "config/test_file_urls.py::test_functions_of_one_url_share_one_store_and_find_their_results_in_another",
    ],
    "a system without file locks": [
        "config/test_file_urls.py::test_a_system_without_file_locks_says_so_and_has_all_the_rest",
        "test_cli.py::test_on_a_system_without_file_locks_there_is_no_second_process",
    ],
}
DOCS |= {
    "choose a store": [
        "test_choose_a_store.py::test_the_large_table_has_the_stores_and_settings_that_there_are",
        "test_choose_a_store.py::test_what_a_hit_costs_is_what_was_measured",
    ],
    "Redis in production: least privilege": [
        "redis/test_redis_page.py::test_with_the_permissions_of_the_page_everything_works_and_nothing_is_refused",
        "redis/test_redis_page.py::test_without_any_one_of_them_something_does_not",
        "redis/test_redis_page.py::test_the_classic_interface_works_with_what_the_page_adds_for_it",
        "redis/test_redis_page.py::test_and_not_without_any_one_of_these",
    ],
    "Redis in production: memory policies": [
        "redis/test_redis_page.py::test_when_memory_is_full_nothing_stale_is_served_and_every_invalidation_works",
        "redis/test_redis_page.py::test_where_nothing_is_evicted_what_a_tag_has_made_untrue_keeps_the_server_full",
    ],
    "Redis in production: what a caller sees": [
        "redis/test_redis_page.py::test_what_the_page_says_to_fail_nobody_fails_nobody_and_is_counted",
        "redis/test_redis_page.py::test_what_the_page_says_to_be_an_error_is_one",
        "redis/test_redis_page.py::test_the_table_of_failures_has_all_that_asks_the_server",
        "redis/test_redis_page.py::test_the_numbers_of_the_page_are_those_of_the_code",
    ],
    "Redis in production: the wire format": [
        "redis/test_redis_page.py::test_the_bytes_that_the_page_shows_are_the_golden_ones",
        "redis/test_golden_payloads.py",
    ],
    "a FastAPI application in server processes": [
        "redis/test_examples.py::test_a_page_shows_the_whole_example",
        "redis/test_examples.py::test_processes_share_results_see_each_others_writes_and_do_without_redis",
        "redis/test_examples.py::test_that_no_redis_is_there_at_the_start_is_no_matter",
        "redis/test_examples.py::test_the_test_that_the_page_shows_passes",
    ],
    "structured logging": [
        "redis/test_examples.py::test_log_lines_and_statistics_are_json_without_arguments_values_and_passwords",
        "redis/test_examples.py::test_where_all_is_well_the_statistics_are_all_that_is_logged",
    ],
    "the reference of the file store": [
        "test_docs.py::test_the_reference_has_every_parameter_of_a_file_store",
        "test_docs.py::test_the_reference_has_every_method_of_a_file_store",
        "test_docs.py::test_the_reference_has_every_statistic_of_a_file_store",
        "test_docs.py::test_the_reference_has_every_command_and_its_options",
    ],
}
COMMAND = {
    "a second process over the demo's file starts warm": [
        "test_cli.py::test_a_second_process_over_the_same_file_is_warm_from_its_first_call",
        "test_cli.py::test_a_file_of_the_users_keeps_the_results_for_the_next_run",
        "test_docs.py::test_the_readme_shows_the_table_that_the_demo_prints",
    ],
    "inspect lists keys, ages and sizes": [
        "file/test_inspect.py::test_entries_are_listed_with_function_tags_age_time_left_and_size",
        "file/test_inspect.py::test_numbers_agree_with_the_stores_own",
        "file/test_inspect.py::test_torn_and_damaged_stretches_are_counted_and_what_may_still_be_written_is_told_apart",
    ],
    "inspect unpickles nothing": ["file/test_inspect.py::test_no_value_is_unpickled"],
    "inspect makes, locks and changes nothing": [
        "file/test_inspect.py::test_the_file_is_not_changed_and_nothing_is_put_beside_it",
        "file/test_inspect.py::test_a_missing_file_is_not_made",
        "file/test_inspect.py::test_no_lock_is_taken_and_none_is_waited_for",
    ],
    "inspect is no way into a terminal": [
        "file/test_inspect.py::test_nothing_in_a_key_a_tag_or_a_path_reaches_the_terminal_as_a_command",
        "file/test_inspect.py::test_no_line_is_longer_than_80_columns_whatever_the_keys_are",
    ],
}

# What becomes of a file whose writers are killed, or whose bytes are spoilt.
FAULTS |= {
    "kill -9 in an append": [
        "file/test_kill.py::test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged",
        "file/test_kill.py::test_a_kill_at_each_system_call_leaves_an_operation_done_or_not_done",
    ],
    "kill -9 in a compaction and in the first opening": [
        "file/test_kill.py::test_a_kill_at_each_system_call_leaves_an_operation_done_or_not_done",
    ],
    "a torn tail, then another process appends behind it": [
        "file/test_damage.py::test_a_log_that_is_torn_anywhere_loses_only_what_was_torn",
        "file/test_crash.py::test_two_torn_tails_in_a_row_lose_nothing_else",
        "file/test_crash.py::test_torn_tails_with_records_between_them_are_known_to_whoever_reads_them_later",
        "file/test_crash.py::test_readers_that_stand_at_different_places_go_on_behind_a_torn_tail",
    ],
    "the half-written record of a live writer": [
        "file/test_crash.py::test_the_beginning_of_a_live_writers_record_is_not_yet_there",
        "file/test_crash.py::test_a_long_record_that_is_being_written_is_read_through_once",
    ],
    "a value that contains bytes of its own log": [
        "file/test_crash.py::test_a_value_that_contains_bytes_of_its_own_log_never_comes_to_life",
    ],
    "bit flips": [
        "file/test_damage.py::test_a_flip_of_any_bit_gives_the_latest_value_or_a_miss",
        "file/test_damage.py::test_a_flip_behind_a_torn_record_that_claims_more_than_there_is_brings_nothing_back",
        "file/test_damage.py::test_any_log_torn_and_flipped_anywhere",
    ],
    "zeroed and swapped pages, doubled and spliced records, foreign bytes": [
        "file/test_damage.py::test_a_page_that_was_lost_gives_the_latest_value_or_a_miss",
        "file/test_damage.py::test_pages_that_were_swapped_give_the_latest_value_or_a_miss",
        "file/test_damage.py::test_records_that_were_doubled_left_out_or_exchanged_give_the_latest_value_or_a_miss",
        "file/test_damage.py::test_bytes_that_do_not_belong_there_give_the_latest_value_or_a_miss",
    ],
    "a length that claims gigabytes": ["file/test_damage.py::test_a_length_that_claims_gigabytes_takes_no_memory"],
    "what the crash tests notice": ["file/test_crash.py::test_it_is_noticed_when"],
}

MEASURED |= {
    15: ["file/test_secret.py::test_a_record_by_who_has_no_secret_is_never_unpickled"],
    19: ["file/test_traps.py::test_m19_crash_marker"],
}
for number in 1, 2, 3, 5, 6, 11, 12, 13, 14, 16, 20, 21, 23, 25:
    MEASURED[number].append(MEASURED[number][0].replace("peers/test_measured.py", "file/test_traps.py"))

# What the file store is to be, and what was to be shown of it.
FILE = {
    "the contract of every store, with a secret and without": ["file/test_contract.py"],
    "reopen, second handle, compact, crash at a chosen write": [
        "file/test_machine.py::TestFileMachine",
        "file/test_machine.py::TestSignedFileMachine",
        "file/test_machine.py::TestAwaitedFileMachine",
    ],
    "windows": ["file/test_machine.py::TestFileWindows"],
    "max_size and the order of use": [
        "file/test_machine.py::TestRecency",
        "file/test_sharing.py::test_each_process_sees_anothers_evictions",
        "file/test_compaction.py::test_the_order_of_use_survives_it",
    ],
    "no stale fill": [
        "file/test_no_stale_fill.py::test_in_no_interleaving_of_two_processes_is_a_call_given_what_an_invalidation_overtook",
        "file/test_no_stale_fill.py::test_nor_when_the_file_is_rewritten_or_opened_anew_in_between",
        "file/test_no_stale_fill.py::test_nor_does_a_refresh_behind_callers_store_what_another_process_has_invalidated",
        "file/test_no_stale_fill.py::test_nor_awaited",
        "file/test_no_stale_fill.py::test_real_processes_in_a_race_are_never_given_anything_stale",
    ],
    "an eviction, a set, another's value void a load": [
        "file/test_no_stale_fill.py::test_an_eviction_by_another_process_voids_a_refresh_that_is_under_way",
        "file/test_no_stale_fill.py::test_an_invalidation_voids_a_load_also_where_anothers_value_stands",
    ],
    "each sees at its next operation what others have done": [
        "file/test_sharing.py::test_each_process_sees_what_another_has_set_and_removed",
        "file/test_sharing.py::test_each_process_sees_anothers_results_and_invalidations",
        "file/test_sharing.py::test_what_expires_does_so_for_all_and_is_renewed_for_all",
        "file/test_sharing.py::test_each_process_sees_that_another_has_rewritten_or_reopened_the_file",
    ],
    "increment is exact across processes and threads": [
        "file/test_sharing.py::test_increment_is_exact_over_processes_and_threads"
    ],
    "results are there in the next run": ["file/test_sharing.py::test_a_script_that_is_run_again_loads_nothing"],
    "many ids with one lock and one write": [
        "file/test_sharing.py::test_many_ids_are_read_without_a_lock_and_written_with_one",
        "file/test_sharing.py::test_many_ids_awaited",
    ],
    "whose entries these are": [
        "file/test_sharing.py::test_an_instance_that_counts_by_identity_is_refused_with_the_ways_out",
        "file/test_sharing.py::test_a_lambda_or_a_closure_without_a_name_is_refused",
        "file/test_sharing.py::test_two_functions_whose_keys_are_one_text_see_each_others_entries_as_misses",
        "file/test_sharing.py::test_a_plain_value_at_a_functions_key_is_a_miss_for_it",
    ],
    "compaction: when garbage outweighs what lives, in a thread, never in a set": [
        "file/test_compaction.py::test_a_file_is_rewritten_in_a_thread_when_garbage_outweighs_what_lives",
        "file/test_compaction.py::test_what_has_expired_is_garbage_too",
        "file/test_compaction.py::test_no_set_waits_for_a_compaction",
    ],
    "compaction: nothing that others append is lost": [
        "file/test_compaction.py::test_what_another_process_writes_before_any_step_is_kept",
        "file/test_compaction.py::test_processes_that_set_delete_and_compact_lose_nothing_and_the_file_stays_small",
    ],
    "compaction: broken off at any step": [
        "file/test_compaction.py::test_an_abort_before_any_step_leaves_the_file_and_no_other",
        "file/test_compaction.py::test_what_a_killed_compaction_has_left_is_cleaned_by_the_next_one",
        "file/test_compaction.py::test_closing_breaks_off_what_is_under_way",
        "file/test_compaction.py::test_the_interpreters_exit_is_not_delayed_and_silent",
    ],
    "the index takes no more than 120 bytes a key": [
        "file/test_compaction.py::test_the_index_takes_no_more_than_120_bytes_a_key_beside_the_keys_text"
    ],
    "a stopped lock holder does not hang the others": [
        "file/test_faults.py::test_nobody_waits_longer_than_the_timeout_for_a_holder_that_was_stopped"
    ],
    "secrets: the canary, rotation, no downgrade": [
        "file/test_secret.py::test_the_canary_would_sing",
        "file/test_secret.py::test_secrets_are_changed_one_process_after_the_other",
        "file/test_secret.py::test_a_file_that_is_not_signed_is_none_for_who_gives_a_secret",
        "file/test_secret.py::test_who_cannot_verify_never_compacts",
    ],
    "what the machines catch": ["file/test_mutants.py::test_what_watches_catches"],
}

FAULTS |= {
    f"a file: {name}": [f"file/{test}" for test in tests]
    for name, tests in {
        # time
        "the wall clock jumps": [
            "test_clock.py::test_no_entry_outlives_its_ttl_by_more_than_a_second_whatever_the_wall_clock_does",
            "test_clock.py::test_small_steps_empty_nothing",
            "test_clock.py::test_a_jump_forward_and_back_leaves_nothing_that_lives_too_long",
        ],
        "the wall clock runs backwards": [
            "test_clock.py::test_a_clock_that_runs_backwards_empties_the_store_for_all_processes",
            "test_clock.py::test_a_load_that_was_under_way_when_the_clock_ran_backwards_is_not_stored",
        ],
        "made in the future": [
            "test_clock.py::test_what_was_made_in_the_future_is_not_there",
            "test_clock.py::test_what_a_gone_process_made_in_the_future_does_not_live_when_its_time_has_come",
            "test_compaction.py::test_what_a_clock_in_the_future_has_made_is_not_copied",
        ],
        "equal timestamps": ["test_clock.py::test_equal_timestamps_are_told_apart_by_their_order"],
        "expiry across restarts": ["test_clock.py::test_expiry_goes_on_across_restarts"],
        # processes
        "fork with an open file": [
            "test_fork.py::test_a_child_has_closed_its_parents_descriptor_before_anything_else",
            "test_fork.py::test_parent_and_children_lose_no_record",
        ],
        "fork with the lock held": [
            "test_fork.py::test_a_fork_while_another_thread_writes_leaves_the_store_free_in_the_child",
            "test_fork.py::test_a_child_does_not_keep_the_lock_of_a_parent_that_was_killed_with_it",
            "test_fork.py::test_forks_under_load_leave_every_lock_free_and_every_record_there",
        ],
        "fork with a leader in flight": ["test_fork.py::test_a_child_answers_a_key_that_its_parent_is_loading"],
        "fork with a compaction under way": [
            "test_fork.py::test_a_child_has_nothing_of_a_compaction_that_is_under_way"
        ],
        # the file
        "full disk, short write, quota": [
            "test_faults.py::test_a_disk_that_is_full_loses_nothing_acknowledged",
            "test_faults.py::test_a_limit_on_a_files_size_cuts_a_write_short_and_nothing_acknowledged_is_lost",
            "test_faults.py::test_a_device_that_is_full",
        ],
        "EIO, EINTR, EMFILE, ENOMEM at any call": [
            "test_faults.py::test_a_read_raises_nothing_whichever_call_fails",
            "test_faults.py::test_a_set_fails_open_whichever_call_fails",
            "test_faults.py::test_an_invalidation_fails_loud_whichever_call_fails",
            "test_faults.py::test_each_error_of_the_system_is_the_same",
            "test_faults.py::test_a_compaction_leaves_the_old_file_or_the_new_whichever_call_fails",
        ],
        "a sync that fails": ["test_faults.py::test_a_file_whose_sync_has_failed_never_takes_the_place_of_the_old_one"],
        "read-only file system, no permission": [
            "test_opening.py::test_a_file_system_that_may_only_be_read_is_read",
            "test_opening.py::test_a_file_whose_mode_lets_nobody_write_is_read",
            "test_opening.py::test_what_may_not_even_be_read_is_no_exception_from_a_read",
        ],
        "user code under our lock": ["test_values.py::test_user_code_runs_while_no_lock_is_held"],
        "interruptions, finalizers, signal and log handlers at odd moments": ["test_moments.py"],
        "two processes compact": [
            "test_compaction.py::test_one_process_compacts_and_the_others_do_not_wait_for_it",
            "test_compaction.py::test_processes_that_set_delete_and_compact_lose_nothing_and_the_file_stays_small",
        ],
        "deleted or replaced beneath": [
            "test_faults.py::test_a_file_that_is_deleted_replaced_cut_off_or_restored_is_right_or_a_miss_and_heals_at_once",
            "test_compaction.py::test_a_file_that_is_replaced_beneath_is_not_overwritten",
        ],
        "links and special files": [
            "test_opening.py::test_what_is_no_file_of_its_own_is_refused_and_left_as_it_is",
            "test_opening.py::test_a_race_of_things_that_come_and_go_at_the_path_never_reaches_what_they_lead_to",
        ],
        "the lock and another close": [
            "test_faults.py::test_the_lock_is_not_lost_when_the_file_is_closed_elsewhere_in_the_process"
        ],
        "no flock": ["test_opening.py::test_a_file_system_without_locks_is_a_clear_error"],
        "foreign, newer, empty, other-key": [
            "test_opening.py::test_a_foreign_file_is_refused_and_never_changed",
            "test_opening.py::test_a_file_of_a_newer_format_is_refused_with_advice",
            "test_opening.py::test_a_file_that_is_cut_off_within_its_header_is_begun_anew",
            "test_secret.py::test_a_signed_file_is_none_for_who_has_not_its_secret",
        ],
        "permissions": ["test_opening.py::test_a_new_file_is_its_owners_alone_whatever_the_umask"],
        "a huge index": ["test_compaction.py::test_the_index_takes_no_more_than_120_bytes_a_key_beside_the_keys_text"],
        # payloads
        "class moved, module gone, __setstate__ raises": [
            "test_traps.py::test_what_an_older_version_has_pickled_is_a_miss_that_is_filled_again"
        ],
        "a pickle from an attacker": [
            "test_secret.py::test_a_record_by_who_has_no_secret_is_never_unpickled",
            "test_secret.py::test_a_genuine_value_is_none_under_another_key",
            "test_secret.py::test_without_a_secret_who_can_write_the_file_can_run_code",
        ],
        "a value that cannot be pickled": [
            "test_values.py::test_what_cannot_be_pickled_is_returned_and_not_stored",
            "test_sharing.py::test_of_many_ids_one_value_that_cannot_be_stored_does_not_hinder_the_others",
        ],
    }.items()
}

# The classic interface: issue 5, item 6.
CLASSIC = {
    "a stand-in sees one GET, and one SET on a miss": [
        "redis/test_stand_in.py::test_a_miss_is_one_get_and_one_set",
        "redis/test_stand_in.py::test_a_hit_is_one_get_whether_the_client_decodes_responses_or_not",
        "redis/test_stand_in.py::test_whole_seconds_go_as_ex_and_others_as_px",
        "redis/test_stand_in.py::test_invalidating_is_one_del",
    ],
    "None is not cached, and what is false is": [
        "redis/test_stand_in.py::test_none_is_returned_and_not_cached",
        "redis/test_stand_in.py::test_what_is_false_is_cached",
    ],
    "one load for concurrent misses": [
        "redis/test_manager_races.py::test_a_thousand_threads_make_one_load",
        "redis/test_manager_races.py::test_a_thousand_threads_make_one_load_however_soon_it_is_over",
        "redis/test_manager_races.py::test_a_thousand_tasks_make_one_load",
        "redis/test_manager_races.py::test_all_that_use_one_client_share_their_loads",
    ],
    "no stale fill in one process": [
        "redis/test_manager_races.py::test_a_load_that_began_before_an_invalidation_fills_nothing",
        "redis/test_manager_races.py::test_a_call_after_an_invalidation_joins_no_load_from_before",
        "redis/test_manager_races.py::test_an_invalidation_waits_for_a_set_that_is_on_its_way",
        "redis/test_manager_races.py::test_readers_beside_a_writer_never_read_what_it_has_invalidated",
        "redis/test_manager_races.py::test_tasks_beside_a_writer_never_read_what_it_has_invalidated",
    ],
    "cancellation, recursion, leaders that fail, forks": [
        "redis/test_manager_races.py::test_a_caller_that_is_cancelled_leaves_the_load_to_the_others",
        "redis/test_manager_races.py::test_a_source_that_asks_for_its_own_key_is_an_error_and_no_deadlock",
        "redis/test_manager_races.py::test_followers_get_the_leaders_error",
        "redis/test_manager_races.py::test_a_leader_that_is_interrupted_leaves_the_load_to_another",
        "redis/test_manager_races.py::test_a_child_of_fork_waits_for_nothing_of_its_parents",
    ],
    "Redis fails": [
        "redis/test_stand_in.py::test_if_get_fails_the_data_source_is_asked_and_the_server_not_again",
        "redis/test_stand_in.py::test_what_cannot_be_decoded_is_a_miss_and_is_replaced",
        "redis/test_stand_in.py::test_what_json_cannot_write_is_returned_and_not_cached",
        "redis/test_stand_in.py::test_an_outage_logs_a_line_a_minute_for_each_kind",
        "redis/test_managers.py::test_a_server_that_is_down_at_the_start_is_used_as_soon_as_it_is_there",
        "redis/test_managers.py::test_a_server_that_hangs_is_waited_for_as_long_as_the_config_says_and_not_twice",
    ],
    "clients of a config": [
        "redis/test_managers.py::test_a_client_has_the_settings_retries_nothing_and_is_not_connected",
        "redis/test_managers.py::test_no_repr_of_a_client_shows_the_password",
        "redis/test_managers.py::test_memo_and_its_managers_are_imported_without_redis",
    ],
    "metrics": ["redis/test_stand_in.py::test_metrics_count_what_the_manager_has_done"],
    "functions": ["redis/test_functions.py"],
}

# Values to bytes and back: issue 5, item 5.
SERIALIZERS = {
    "a hit has the type and the value that the miss had": [
        "serializers/test_round_trips.py::test_a_result_comes_back_as_it_was",
        "serializers/test_round_trips.py::test_every_serializer_keeps_plain_values_and_annotated_ones",
    ],
    "JSON is plain JSON": [
        "serializers/test_round_trips.py::test_json_is_what_any_program_reads",
        "serializers/test_round_trips.py::test_json_of_other_programs_is_read",
    ],
    "unions": [
        "serializers/test_round_trips.py::test_of_a_union_the_member_counts_that_would_write_the_same_again",
        "serializers/test_annotations.py::test_unions_that_msgspec_refuses_are_decoded_anywhere",
    ],
    "annotations are found, late": [
        "serializers/test_annotations.py::test_the_annotation_is_found_through_whatever_wraps_the_function",
        "serializers/test_annotations.py::test_names_are_found_where_the_function_was_written",
        "serializers/test_annotations.py::test_the_annotation_is_resolved_at_the_first_payload",
        "serializers/test_annotations.py::test_of_a_function_of_many_ids_the_mappings_values_count",
    ],
    "an annotation of no use counts as none, with one warning": [
        "serializers/test_annotations.py::test_what_cannot_be_resolved_or_decoded_counts_as_none_with_one_warning"
    ],
    "libraries of models are not imported": [
        "serializers/test_annotations.py::test_libraries_of_models_are_imported_by_their_users_only"
    ],
    "the fidelity check": [
        "serializers/test_fidelity.py::test_what_would_come_back_different_is_an_error",
        "serializers/test_fidelity.py::test_every_kind_of_value_is_told_from_another_and_not_from_its_copy",
        "serializers/test_fidelity.py::test_the_error_shows_no_value",
        "serializers/test_fidelity.py::test_without_the_check_what_can_be_written_is_kept_changed",
        "serializers/test_names.py::test_a_result_that_would_come_back_different_is_returned_and_not_kept",
    ],
    "golden payloads": ["serializers/test_golden.py::test_payloads_of_every_release_are_read"],
    "a function's own serializer": [
        "serializers/test_option.py::test_what_is_no_serializer_is_refused_at_decoration",
        "serializers/test_option.py::test_a_hit_has_the_type_of_the_miss_and_is_a_copy",
        "serializers/test_option.py::test_of_many_ids_each_value_is_written_by_it",
        "serializers/test_option.py::test_on_redis_a_pickle_needs_a_secret_or_trust_which_the_first_call_finds",
        "serializers/test_option.py::test_after_a_deploy_what_another_serializer_wrote_is_a_miss_and_is_replaced",
        "serializers/test_option.py::test_an_invalidation_reaches_what_another_serializer_has_written",
    ],
    "a store's serializer changes nothing silently, in memory too": [
        "serializers/test_option.py::test_a_stores_serializer_keeps_nothing_that_it_would_change",
        "serializers/test_option.py::test_a_stores_serializer_reads_by_the_return_annotation",
    ],
    "names": ["serializers/test_names.py::test_what_is_no_serializer_is_refused_with_what_is_allowed"],
    "pickle on a network": [
        "serializers/test_pickles.py::test_a_network_store_can_refuse_to_unpickle_what_anyone_wrote"
    ],
    "size caps both ways": [
        "serializers/test_hostile_bytes.py::test_a_payload_that_is_too_large_is_neither_written_nor_read",
        "serializers/test_compression.py::test_what_could_not_be_read_again_is_not_written",
    ],
}

FAULTS |= {
    f"a payload: {name}": [f"serializers/{test}" for test in tests]
    for name, tests in {
        "corrupt or foreign": [
            "test_hostile_bytes.py::test_any_bytes_are_a_value_or_a_serialization_error",
            "test_hostile_bytes.py::test_spoilt_payloads_of_our_own",
        ],
        "a class of another name, or that raises": [
            "test_pickles.py::test_a_class_that_has_another_name_in_the_next_process_is_an_error_when_read",
            "test_pickles.py::test_whatever_a_class_raises_when_it_is_read_is_one_kind_of_error",
        ],
        "a pickle from an attacker": [
            "test_pickles.py::test_the_canary_sings_where_anyone_is_trusted",
            "test_pickles.py::test_with_a_secret_nothing_else_is_ever_unpickled",
            "test_pickles.py::test_no_other_bytes_than_what_was_signed_are_unpickled",
            "test_pickles.py::test_a_payload_is_good_in_its_own_place_only",
        ],
        "MAC misuse": [
            "test_pickles.py::test_where_a_place_ends_and_the_payload_begins_is_signed_too",
            "test_pickles.py::test_a_secret_is_changed_by_a_list_with_the_newest_first",
            "test_pickles.py::test_what_is_no_secret_is_refused_and_not_shown",
            "test_pickles.py::test_the_secret_is_in_no_representation",
        ],
        "unpicklable values": ["test_pickles.py::test_what_cannot_be_pickled_is_one_kind_of_error"],
        "deep, cyclic, huge": [
            "test_fidelity.py::test_what_would_come_back_different_is_an_error",
            "test_fidelity.py::test_a_pickle_may_hold_a_cycle_and_an_object_many_times_over",
        ],
        "a compressed bomb": [
            "test_compression.py::test_a_bomb_is_an_error_and_takes_no_memory",
            "test_compression.py::test_a_layered_bomb_is_an_error_at_the_layer_that_is_too_large",
            "test_pickles.py::test_signing_is_of_the_compressed_bytes_so_that_nothing_else_is_decompressed",
        ],
    }.items()
}

# What the protocol of the Redis store promises, shown of a model of it.
PROTOCOL = {
    "no stale read, no late fill, no second load, no endless wait, in any interleaving": [
        "redis/test_protocol_model.py::test_every_promise_holds_in_every_interleaving",
        "redis/test_protocol_model.py::test_every_transition_of_the_model_is_tried",
    ],
    "what would break it is known": [
        "redis/test_protocol_model.py::test_a_protocol_with_a_defect_is_found_out",
        "redis/test_protocol_model.py::test_the_table_has_every_defect_that_the_model_can_have",
    ],
}

# The Redis store over a real server: issue 5, items 1, 2, 3 and 7.
REDIS_STORE = {
    "the state machines": [
        "redis/test_store_machine.py::TestRedisMachine",
        "redis/test_store_machine.py::TestAwaitedMachine",
        "redis/test_store_machine.py::TestPickleMachine",
        "redis/test_store_machine.py::TestAwaitedPickleMachine",
    ],
    "stale windows by the server's time": [
        "redis/test_store_machine.py::TestRedisWindows",
        "redis/test_store_machine.py::TestFleetWindows",
        "redis/test_steps.py::test_stale_early_and_kept_go_by_the_time_that_the_server_has_left",
    ],
    "no stale fill in any interleaving of two processes": [
        (
            "redis/test_no_stale_fill_redis.py::"
            "test_in_no_interleaving_of_two_processes_is_a_call_given_what_an_invalidation_overtook"
        ),
        "redis/test_no_stale_fill_redis.py::test_nor_whatever_stands_there_at_first",
        "redis/test_no_stale_fill_redis.py::test_nor_if_others_come_between_two_commands_of_one_round_trip",
        "redis/test_no_stale_fill_redis.py::test_nor_where_one_process_loads_for_all",
    ],
    "no stale fill if entries, placeholders, stamps or scripts are lost": [
        "redis/test_no_stale_fill_redis.py::test_nor_if_the_server_loses_something_meanwhile"
    ],
    "either client, protocol and parser; the oldest client and each server under nightly": [
        "redis/test_versions.py::test_the_client_works_by_either_protocol_with_and_without_hiredis",
        "redis/test_versions.py::test_the_oldest_client_is_the_one_that_is_asked_for",
        "redis/test_failures.py::test_either_protocol_with_and_without_hiredis",
    ],
    "no stale fill in a race of real processes": [
        "redis/test_no_stale_fill_redis.py::test_real_processes_in_a_race_are_never_given_anything_stale",
        "redis/test_races_redis.py::test_after_an_invalidation_no_reader_in_any_process_is_given_anything_older",
        "redis/test_races_redis.py::test_nor_where_one_process_loads_for_all",
        "redis/test_races_redis.py::test_the_race_is_lost_where_a_fill_does_not_look_at_what_the_load_began_with",
    ],
    "fleet: one load over processes, threads and tasks": [
        "redis/test_fleet.py::test_three_processes_with_threads_and_tasks_load_once",
        "redis/test_fleet.py::test_what_was_invalidated_by_a_tag_is_loaded_once",
        "redis/test_fleet.py::test_of_a_stale_value_one_process_makes_the_refresh_and_the_others_serve_it",
    ],
    "fleet: waits are bounded": [
        "redis/test_fleet.py::test_who_has_waited_for_as_long_as_he_may_loads_by_himself",
        "redis/test_fleet.py::test_it_does_not_wait_for_ever_for_one_and_the_same_load",
    ],
    "fleet: a dead owner, a late one, one that raises": [
        "redis/test_fleet.py::test_a_killed_owner_is_waited_for_until_its_placeholder_is_over",
        "redis/test_fleet.py::test_the_late_fill_of_one_that_was_only_slow_is_refused",
        "redis/test_fleet.py::test_an_owner_that_raises_lets_the_next_one_load_at_once",
        "redis/test_fleet.py::test_who_never_heard_that_it_had_a_lease_does_not_wait_for_it_later",
    ],
    "fleet: other stores": [
        "redis/test_fleet.py::test_where_there_is_one_process_only_it_is_the_fleet",
        "redis/test_fleet.py::test_a_file_has_no_fleet_and_says_what_has",
    ],
    "round trips": [
        "redis/test_steps.py::test_a_hit_is_one_round_trip_and_a_miss_two",
        "redis/test_steps.py::test_of_many_ids_the_hits_are_one_round_trip_and_so_are_the_leases_and_the_fills",
    ],
    "ten thousand keys": ["redis/test_steps.py::test_ten_thousand_keys_are_listed_and_removed_by_pattern_in_batches"],
    "a prefix is taken as it is": ["redis/test_steps.py::test_a_prefix_is_taken_as_it_is"],
    "entries of many tags": [
        "redis/test_steps.py::test_entries_of_many_tags_are_as_all_others",
        "redis/test_steps.py::test_any_of_many_tags_that_is_invalidated_takes_its_entries",
        "redis/test_steps.py::test_only_of_entries_of_many_tags_all_is_read",
    ],
    "the store's own keys": ["redis/test_steps.py::test_keys_of_stamps_are_refused"],
    "golden payloads": ["redis/test_golden_payloads.py"],
    "what somebody else has put there": [
        "redis/test_redis_traps.py::test_a_plain_value_at_a_functions_key_is_a_miss_counted_and_warned_of_once",
        "redis/test_redis_traps.py::test_two_functions_of_one_key_see_each_others_results_as_misses",
        "redis/test_redis_traps.py::test_a_list_at_a_key_is_a_miss_and_is_replaced",
        "redis/test_redis_traps.py::test_bytes_that_are_nobodys_are_a_miss_and_are_replaced",
    ],
    "plain JSON": ["redis/test_redis_traps.py::test_what_set_stores_is_plain_json_for_a_bare_client"],
    "down, killed, hung, dripping, loading": [
        "redis/test_failures.py::test_down_at_the_start_and_used_as_soon_as_it_is_there",
        "redis/test_failures.py::test_killed_between_lease_and_fill_and_restarted_empty_nothing_is_filled",
        "redis/test_failures.py::test_hung_and_going_on",
        "redis/test_failures.py::test_paused_by_a_client_and_going_on",
        "redis/test_failures.py::test_dripping_a_byte_at_a_time_it_is_waited_for_no_longer_than_the_timeout",
        "redis/test_failures.py::test_loading_its_data_it_answers_nothing_else",
        "redis/test_wire.py::test_each_call_of_a_socket_has_what_is_left_of_the_deadline",
    ],
    "a faulty store around a Redis store": [
        "redis/test_faulty_redis.py::test_without_a_fault_it_is_the_store_within",
        "redis/test_faulty_redis.py::test_a_lease_that_a_look_has_taken_stays_taken_where_values_are_corrupted",
    ],
    "invalidations that wait, the newest wins": [
        "redis/test_owed.py::test_what_got_no_answer_is_removed_before_anything_else_is_asked",
        "redis/test_owed.py::test_the_newest_wins",
        "redis/test_owed.py::test_a_load_that_began_before_is_not_stored",
        "redis/test_owed.py::test_while_nobody_asks_for_anything_a_thread_tries_again_and_ends",
        "redis/test_owed.py::test_while_the_server_refuses_to_remove_nothing_is_read",
    ],
    "one deadline for an operation": [
        "redis/test_link.py::test_a_lookup_of_two_round_trips_has_one_deadline_and_the_fill_its_own",
        "redis/test_link.py::test_an_operation_that_goes_on_and_on_ends_with_its_time_and_opens_no_breaker",
        "redis/test_link.py::test_what_asks_for_all_keys_has_a_deadline_for_each_round_trip",
        "redis/test_failures.py::test_a_lookup_of_two_round_trips_has_one_timeout_for_both",
    ],
    "out of memory, scripts flushed, other types, no permission": [
        "redis/test_failures.py::test_out_of_memory_reads_go_on_and_every_invalidation_works",
        "redis/test_failures.py::test_scripts_are_flushed_before_each_operation",
        "redis/test_failures.py::test_something_of_another_type_at_a_key_is_a_miss_and_replaced_by_a_fill",
        "redis/test_failures.py::test_who_may_only_read_reads_and_is_told_what_was_not_removed",
        "redis/test_failures.py::test_who_may_run_no_script_loads_again_and_again_and_invalidates",
    ],
    "keys and stamps evicted": [
        "redis/test_failures.py::test_where_memory_runs_out_all_the_time_nothing_that_was_invalidated_is_served"
    ],
    "keys of any characters": ["redis/test_failures.py::test_a_key_of_any_characters_is_that_key_and_no_other"],
    "passwords that are wrong, no more clients let in": [
        (
            "redis/test_failures.py::"
            "test_whoever_the_server_does_not_know_fails_open_and_loud_without_a_password_in_sight"
        ),
        "redis/test_failures.py::test_no_more_clients_are_let_in",
    ],
    "busy, unable to save, demoted, loading for long": [
        "redis/test_failures.py::test_busy_in_a_script_it_answers_nothing_and_goes_on_when_that_is_ended",
        "redis/test_failures.py::test_unable_to_save_it_serves_what_it_has_and_says_what_was_not_removed",
        "redis/test_failures.py::test_demoted_to_a_replica_it_serves_what_it_has_and_says_what_was_not_removed",
        "redis/test_failures.py::test_loading_its_data_for_a_long_time_it_is_used_as_soon_as_it_is_done",
    ],
    "killed and hung amid many calls": [
        "redis/test_failures.py::test_killed_amid_many_calls_and_restarted_again_and_again_nobody_sees_an_error",
        "redis/test_failures.py::test_hung_amid_many_calls_and_going_on_each_answer_belongs_to_its_question",
    ],
    "garbage, values too large, pools exhausted, answers of others": [
        "redis/test_wire.py::test_of_a_peer_that_is_no_server_nothing_is_kept_and_no_connection_is_used_again",
        "redis/test_failures.py::test_a_peer_that_says_anything_fails_open_and_loud",
        "redis/test_failures.py::test_a_value_too_large_is_not_stored_and_opens_no_breaker",
        "redis/test_wire.py::test_an_exhausted_pool_says_so_and_loses_nothing",
        "redis/test_awire.py::test_an_exhausted_pool_says_so_and_loses_nothing",
        "redis/test_failures.py::test_under_thousands_of_cancellations_each_answer_belongs_to_its_question",
        "redis/test_wire.py::test_a_ctrl_c_at_any_line_leaves_connections_in_order",
    ],
    "the breaker": [
        "redis/test_link.py::test_the_breaker_opens_after_three_failures_in_a_row",
        "redis/test_link.py::test_one_probe_at_a_time_is_let_through",
        "redis/test_link.py::test_invalidations_are_tried_all_the_same_and_close_the_breaker",
    ],
    "every error of the client, without secrets": [
        "redis/test_link.py::test_every_error_of_a_client_reaches_callers_as_one_without_secrets"
    ],
    "loops, threads and forks": [
        "redis/test_loops.py::test_a_hundred_loops_in_a_row_leave_nothing_behind",
        "redis/test_loops.py::test_loops_in_many_threads_have_connections_of_their_own",
        "redis/test_loops.py::test_loops_that_are_just_closed_leave_nothing_behind",
        "redis/test_loops.py::test_twenty_loops_of_uvloop_leave_nothing_behind_either",
        "redis/test_loops.py::test_children_and_parent_use_a_store_at_once",
    ],
    "one load for a key in a process": [
        "redis/test_loops.py::test_one_store_serves_threads_and_tasks_at_once",
        "redis/test_loops.py::test_whoever_asks_at_once_a_key_is_loaded_once",
        "redis/test_loops.py::test_who_hears_late_of_its_lease_does_not_load_again_what_another_has_loaded_with_it",
        "redis/test_loops.py::test_who_took_the_lease_joins_a_flight_that_has_not_begun",
        "redis/test_late_answers.py::test_whenever_an_answer_arrives_a_key_is_loaded_once_and_nothing_stale_is_left",
        "redis/test_late_answers.py::test_who_hears_late_of_its_lease_joins_who_has_another_one_by_then",
    ],
    "URLs": [
        "redis/test_redis_urls.py::test_a_url_is_a_redis_store",
        "redis/test_redis_urls.py::test_nothing_connects_before_the_first_call",
        "redis/test_redis_urls.py::test_no_password_is_shown",
    ],
}

ROWS = {
    **{f"redis store: {name}": tests for name, tests in REDIS_STORE.items()},
    **{f"file store: {name}": tests for name, tests in FILE.items()},
    **{f"command: {name}": tests for name, tests in COMMAND.items()},
    **{f"seen: {name}": tests for name, tests in SEEN.items()},
    **{f"freshness: {name}": tests for name, tests in FRESHNESS.items()},
    **{f"promise {name}": tests for name, tests in PROMISES.items()},
    **{f"memory store: {name}": tests for name, tests in STORE.items()},
    **{f"M{number}": tests for number, tests in MEASURED.items()},
    **{f"fault: {name}": tests for name, tests in FAULTS.items()},
    **{f"many: {name}": tests for name, tests in MANY.items()},
    **{f"invalidates: {name}": tests for name, tests in INVALIDATES.items()},
    **{f"serializers: {name}": tests for name, tests in SERIALIZERS.items()},
    **{f"classic: {name}": tests for name, tests in CLASSIC.items()},
    **{f"protocol: {name}": tests for name, tests in PROTOCOL.items()},
    **{f"docs: {name}": tests for name, tests in DOCS.items()},
    **{f"kit: {name}": tests for name, tests in KIT.items()},
    **{f"configuration: {name}": tests for name, tests in CONFIGURATION.items()},
}


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the names of the tests of a file; a machine's `TestCase` and a contract's subclass count too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            marks = [ast.unparse(each) for each in node.decorator_list]
            # `skipif` is for what a platform does not have; the rest would hide a gap.
            if not any("xfail" in mark or ("skip" in mark and "skipif" not in mark) for mark in marks):
                names.add(node.name)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).endswith(".TestCase"):
            names.add(ast.unparse(node.targets[0]))
    return frozenset(names)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_its_tests(row: str) -> None:
    assert ROWS[row], "no test"
    for entry in ROWS[row]:
        path, _, name = entry.partition("::")
        assert (TESTS / path).is_file(), path
        found = names_in(TESTS / path)
        assert name in found if name else found, entry


def test_every_measured_behaviour_has_a_row() -> None:
    assert MEASURED.keys() == set(range(1, 27))


def test_every_file_of_tests_of_the_file_store_answers_for_something() -> None:
    named = {entry.partition("::")[0] for tests in ROWS.values() for entry in tests}
    assert {f"file/{path.name}" for path in (TESTS / "file").glob("test_*.py")} <= named


def test_the_ten_requirements_of_the_memory_store_have_each_a_file_of_its_own() -> None:
    files = [tests[0].partition("::")[0] for tests in STORE.values()]
    assert len(set(files)) == len(files) == 10
