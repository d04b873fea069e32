"""What `make test` leaves to `make extended` so that it keeps to its minutes.

What concerns one test is marked where it stands: `extended`, or parameters in two tiers (tests/harness/pairwise.py).
The minutes concern all of them, so what is left out for their sake stands here: of tests with many alike cells a share,
of which each test takes others than the next, so that every family still meets some; and whole tests, where another one
shows the like in less time.
"""

from __future__ import annotations

import pytest

SHARES: dict[str, dict[str, int]] = {
    'tests/api/test_train.py': {
        'test_pictures_and_sounds_in_rows': 0,
    },
    'tests/cli/test_families.py': {
        'test_every_id_of_lmms_finetune_is_there': 0,
        'test_the_list_says_what_checkpoints_say': 4,
    },
    'tests/contract/test_diffusion_docs.py': {
        'test_the_command_of_nft_runs': 0,
        'test_the_commands_of_editing_run': 0,
    },
    'tests/contract/test_plugins.py': {
        'test_what_is_broken_stops_only_what_asks_for_it_and_says_why': 0,
    },
    'tests/contract/test_preference_docs.py': {
        'test_a_trained_reward_model_is_used_as_the_code_does': 0,
        'test_the_commands_train_and_keep_the_best': 0,
    },
    'tests/contract/test_python_docs.py': {
        'test_its_blocks_run': 0,
    },
    'tests/contract/test_site.py': {
        'test_the_first_hour_is_one_that_can_be_had': 0,
    },
    'tests/datasets/test_template_registry.py': {
        'test_own_formatter_survives_pickling_into_a_fresh_process': 2,
    },
    'tests/engines/test_deepspeed_engine.py': {
        'test_a_restored_engine_goes_on_to_the_same_bits': 2,
        'test_same_weights_for_every_cut_stage_and_layout': 3,
    },
    'tests/invariants/test_adapter_export.py': {
        'test_trained_adapters_reload_apart_and_merged': 3,
    },
    'tests/invariants/test_denoising_runs.py': {
        'test_a_killed_run_goes_on_as_if_nothing_was': 2,
        'test_every_cut_of_a_step_trains_alike': 2,
        'test_partitioned_denoisers_learn_alike_from_their_own_pictures': 2,
    },
    'tests/invariants/test_fallback.py': {
        'test_a_wrong_layout_falls_back_to_padded_and_says_so': 3,
        'test_no_right_layout_is_thrown_away': 8,
    },
    'tests/invariants/test_frozen.py': {
        'test_a_rate_of_zero_for_a_part_changes_nothing_there': 2,
        'test_a_step_without_images_moves_a_trainable_tower_alike_everywhere': 0,
        'test_checkpointing_under_adapters_and_zero_changes_no_gradient': 0,
        'test_offloaded_states_with_torchs_adam_give_the_same_weights': 2,
        'test_quantised_base_stays_while_its_adapters_learn': 3,
        'test_the_codec_of_media_keeps_its_bits_and_all_else_moves': 3,
        'test_the_precision_asked_for_is_in_force_and_masters_are_wide': 3,
    },
    'tests/invariants/test_gradients.py': {
        'test_recomputing_activations_changes_no_gradient': 4,
        'test_whatever_a_batch_holds_the_same_parameters_get_gradients_in_the_same_order': 4,
    },
    'tests/invariants/test_online.py': {
        'test_every_split_and_layout_gives_the_gradient_of_the_full_batch': 3,
    },
    'tests/invariants/test_preferences.py': {
        'test_every_cut_and_layout_gives_the_gradient_of_the_whole': 3,
        'test_two_ranks_step_as_one_process': 4,
    },
    'tests/invariants/test_router.py': {
        'test_loss_and_gradients_are_those_of_a_plain_loop_for_every_cut': 3,
    },
    'tests/invariants/test_scores.py': {
        'test_pad_may_be_the_end_token_and_dummy_media_change_nothing': 4,
    },
    'tests/invariants/test_sharing.py': {
        'test_no_tensor_of_length_by_vocabulary': 3,
        'test_responses_of_a_prompt_share_one_pass_of_its_media': 4,
    },
    'tests/invariants/test_unreached.py': {
        'test_what_is_reached_by_some_micro_batches_only_trains_as_in_one_batch': 4,
    },
    'tests/invariants/test_zero.py': {
        'test_ranks_with_other_kinds_of_media_train_as_one_loop_and_export': 2,
        'test_two_ranks_with_different_rows_train_as_one_loop_and_export': 5,
    },
    'tests/learning/test_drawn.py': {
        'test_a_model_learns_to_draw': 0,
    },
    'tests/learning/test_open_prompts.py': {
        'test_what_a_prompt_names_is_made': 0,
    },
    'tests/learning/test_painted.py': {
        'test_a_painter_learns_the_colours_that_it_is_asked_for': 0,
    },
    'tests/learning/test_painted_online.py': {
        'test_rewards_for_a_colour_are_learned_and_nothing_else_is_lost': 0,
    },
    'tests/models/diffusion/test_activations.py': {
        'test_blocks_that_are_computed_anew_keep_less': 0,
        'test_what_a_denoiser_keeps': 2,
    },
    'tests/models/diffusion/test_denoisers.py': {
        'test_a_denoiser_is_loaded_in_one_type_and_has_a_skeleton': 3,
        'test_gradients_reach_all_and_checkpointing_changes_none': 3,
    },
    'tests/models/diffusion/test_exports.py': {
        'test_a_merged_adapter_is_part_of_the_weights': 4,
        'test_kohyas_names_are_read': 3,
    },
    'tests/models/diffusion/test_pipelines.py': {
        'test_decoding_needs_no_text_encoder': 4,
        'test_latents_are_scaled_as_they_are_unscaled': 3,
        'test_our_own_loop_makes_the_pipelines_own_picture': 2,
        'test_prompts_of_a_batch_do_not_touch_each_other': 3,
        'test_the_denoiser_is_called_as_the_pipeline_calls_it': 3,
    },
    'tests/models/diffusion/test_score.py': {
        'test_each_sample_has_a_value': 3,
    },
    'tests/models/diffusion/test_trained_text.py': {
        'test_a_whole_pipeline_is_saved_with_them': 2,
        'test_adapters_of_all_are_in_one_file': 0,
        'test_gradients_reach_the_text_encoders_and_checkpointing_changes_none': 2,
        'test_it_says_what_prepared_text_says': 2,
    },
    'tests/models/test_adapter.py': {
        'test_training_goes_on_where_it_stopped': 3,
    },
    'tests/models/test_codecs.py': {
        'test_codes_are_those_of_the_class': 3,
        'test_codes_hang_on_nothing_beside_them': 3,
        'test_codes_have_the_grid_that_the_rules_say': 3,
        'test_networks_are_frozen': 3,
    },
    'tests/models/test_composed.py': {
        'test_it_holds_the_weights_of_its_parts_and_reloads_to_the_bit': 3,
        'test_scores_are_the_same_alone_in_a_batch_and_in_every_layout': 3,
    },
    'tests/models/test_composed_parts.py': {
        'test_text_alone_is_scored_as_by_the_language_model': 4,
    },
    'tests/models/test_emitting_families.py': {
        'test_adapters_on_all_layers_merge_into_a_model_with_the_same_scores_and_names': 3,
        'test_the_codec_never_trains': 3,
    },
    'tests/models/test_export.py': {
        'test_merged_export_computes_what_the_live_adapter_computes': 3,
        'test_zero3_exports_the_names_of_the_source': 4,
    },
    'tests/models/test_family_mixed.py': {
        'test_a_dummy_of_each_kind_is_legal_and_harmless': 4,
        'test_a_family_says_what_it_takes': 3,
        'test_a_pickled_spec_encodes_the_same': 3,
        'test_each_kind_of_media_matters': 4,
        'test_every_layout_scores_each_sample_as_if_alone': 4,
        'test_labels_are_the_answers_wherever_media_stand': 3,
        'test_prompts_are_transformers_own': 3,
        'test_videos_of_unequal_length_share_a_turn_and_a_batch': 3,
    },
    'tests/models/test_family_wider.py': {
        'test_plain_transformers_loads_and_generates_up_to_the_end_of_a_turn': 4,
    },
    'tests/models/test_feature_cache.py': {
        'test_outputs_are_those_without_a_cache_and_the_second_time_no_tower_runs': 4,
    },
    'tests/models/test_generation_inputs.py': {
        'test_generate_continues_as_the_policy_scores': 3,
    },
    'tests/models/test_loading.py': {
        'test_a_checkpoint_loads_as_the_class_of_its_family': 4,
    },
    'tests/models/test_lora.py': {
        'test_auto_is_every_linear_layer_of_the_asked_components': 4,
    },
    'tests/models/test_trainable.py': {
        'test_freezing_a_component_freezes_it_and_nothing_else': 4,
        'test_gradient_checkpointing_changes_no_gradient': 4,
    },
    'tests/models/test_videos_with_audio.py': {
        'test_videos_with_and_without_audio_share_a_turn_and_a_batch': 3,
    },
    'tests/policies/denoising/test_learning.py': {
        'test_nft_learns_from_what_the_old_policy_ends_with': 2,
    },
    'tests/policies/test_every_class.py': {
        'test_what_a_run_computes_is_what_the_plain_class_computes': 3,
    },
    'tests/policies/test_score_policy.py': {
        'test_scores_are_those_of_the_plain_body_alone': 3,
    },
    'tests/projects/test_any2any.py': {
        'test_media_go_in_continuously_and_come_out_discrete': 0,
        'test_the_any_to_any_configuration_trains_and_answers_in_files': 0,
    },
    'tests/projects/test_any_to_text.py': {
        'test_a_script_composes_what_the_commands_train': 2,
    },
    'tests/projects/test_omega.py': {
        'test_the_targets_make_from_a_download_to_an_upload': 0,
    },
    'tests/rewards/test_fuzz_server.py': {
        'test_any_question_is_answered_or_refused': 0,
    },
    'tests/rewards/test_golden_answers.py': {
        'test_no_part_of_it_is_the_whole': 4,
    },
    'tests/rewards/test_media_functions.py': {
        'test_ocr': 0,
    },
    'tests/rollouts/test_checkpoint_defaults.py': {
        'test_no_field_of_the_generation_config_changes_a_rollout': 4,
    },
    'tests/rollouts/test_emitting.py': {
        'test_first_ratio_is_one': 3,
    },
    'tests/rollouts/test_frames.py': {
        'test_what_is_scored_is_what_was_sampled': 3,
    },
    'tests/rollouts/test_fuzz_server.py': {
        'test_any_record_is_answered_or_refused': 0,
    },
    'tests/rollouts/test_guidance.py': {
        'test_families_are_guided_too': 3,
        'test_scores_and_gradients_are_those_of_mixed_logits': 3,
    },
    'tests/rollouts/test_hf.py': {
        'test_log_probabilities_are_those_of_the_policy': 3,
    },
    'tests/scripts/test_demo.py': {
        'test_too_few_right_answers_fail': 2,
    },
    'tests/serve/test_fuzz.py': {
        'test_any_body_is_answered_or_refused': 0,
    },
    'tests/trainers/test_bad_inputs.py': {
        'test_the_run_ends_with_code_2_and_a_message': 3,
    },
    'tests/trainers/test_composed_runs.py': {
        'test_every_stage_of_zero_ends_in_the_same_weights': 0,
    },
    'tests/trainers/test_csm.py': {
        'test_preferences_and_rewards_leave_the_depth_decoder_alone': 2,
        'test_two_ranks_of_which_one_has_no_sound_learn_what_one_learns': 0,
    },
    'tests/trainers/test_denoising_continuing.py': {
        'test_a_run_goes_on_from_an_adapter': 0,
    },
    'tests/trainers/test_denoising_data.py': {
        'test_a_dry_run_tells_latents_and_reads_no_weights': 3,
    },
    'tests/trainers/test_denoising_ppo.py': {
        'test_a_dry_run_of_ppo_counts_the_critic': 0,
        'test_a_killed_ppo_run_goes_on_with_its_critic': 0,
    },
    'tests/trainers/test_denoising_runs.py': {
        'test_grpo_by_its_settings': 2,
        'test_pictures_are_kept_within_a_cost_by_models_that_see_them': 0,
        'test_what_means_nothing_for_a_denoiser_is_refused': 3,
    },
    'tests/trainers/test_editing_runs.py': {
        'test_a_dropped_prompt_still_has_its_image': 0,
        'test_a_dry_run_tells_what_is_edited': 0,
        'test_adapters_of_partitioned_editors_are_loaded_by_pipelines': 0,
        'test_every_algorithm_trains_edits': 4,
        'test_what_a_prompt_shows_is_encoded_once': 0,
    },
    'tests/trainers/test_emitting.py': {
        'test_every_algorithm_trains_a_model_that_draws': 3,
        'test_ranks_of_which_one_has_no_picture_train_alike': 2,
        'test_what_cannot_be_emitted_is_refused_before_a_model_loads': 3,
    },
    'tests/trainers/test_emitting_families.py': {
        'test_what_is_drawn_is_scored_as_it_was_sampled': 0,
    },
    'tests/trainers/test_frozen_parts.py': {
        'test_freezing_what_the_model_has_not_is_told': 4,
    },
    'tests/trainers/test_guided_runs.py': {
        'test_a_resumed_run_drops_the_same_prompts': 0,
    },
    'tests/trainers/test_incumbent_pipelines.py': {
        'test_its_files_train_a_pipeline': 0,
    },
    'tests/trainers/test_interruptions.py': {
        'test_an_evaluation_that_cannot_be_gone_by': 3,
    },
    'tests/trainers/test_known_media.py': {
        'test_a_file_that_changed_is_left_out_and_one_that_moved_is_found': 2,
        'test_no_medium_is_decoded_twice': 2,
    },
    'tests/trainers/test_nft_runs.py': {
        'test_a_dry_run_counts_both_averages': 0,
        'test_a_killed_run_goes_on_as_if_it_had_not_been': 0,
    },
    'tests/trainers/test_nonfinite_and_evaluation.py': {
        'test_the_evaluation_loss_is_that_of_a_float64_loop': 2,
    },
    'tests/trainers/test_online.py': {
        'test_every_kind_of_media_is_responded_to_and_trained_on': 3,
        'test_micro_batches_by_tokens_change_no_step': 0,
        'test_what_cannot_be_is_refused': 3,
    },
    'tests/trainers/test_picked_pictures.py': {
        'test_clip_learns_what_fits_a_text_and_is_a_judge_then': 0,
    },
    'tests/trainers/test_previews.py': {
        'test_previews_and_evaluations_hang_on_the_weights_alone': 0,
    },
    'tests/trainers/test_resume.py': {
        'test_a_run_goes_on_with_other_ranks_where_a_step_has_as_many_samples': 0,
    },
    'tests/trainers/test_several_turns.py': {
        'test_every_online_algorithm_takes_several_turns': 4,
    },
    'tests/trainers/test_slices.py': {
        'test_exactly_so_many_checkpoints_are_kept_and_the_newest': 3,
    },
    'tests/trainers/test_token_budget.py': {
        'test_images_count_with_the_tower_that_reads_them': 0,
    },
    'tests/trainers/test_torch_datasets.py': {
        'test_a_batch_of_preferences_has_the_better_rows_first': 4,
    },
    'tests/trainers/test_trained_text_runs.py': {
        'test_adapters_of_it_are_trained_and_its_reference_is_without_them': 0,
        'test_all_of_it_is_trained_and_the_rest_stays': 0,
        'test_steps_of_rollouts_train_it': 0,
    },
    'tests/trainers/test_wider_pairs.py': {
        'test_rows_of_every_kind_and_of_text_alone_train_on_two_ranks': 0,
    },
}
"""By file and name of a test: one in how many of its cells `make test` runs; 0 for none."""


def is_left_out(item: pytest.Item) -> bool:
    """Whether `make test` leaves this test to `make extended`, by `SHARES`."""
    tests = SHARES.get(item.nodeid.partition('::')[0], {})
    name = item.nodeid.rpartition('::')[2].partition('[')[0]
    if name not in tests:
        return False
    if not (share := tests[name]):
        return True
    # Each parameter has the number of the cell, counted over all of them.
    cell = next(iter(item.callspec.indices.values()))
    return (cell + [*tests].index(name)) % share != 0
