//! The operators of coea-engine.
//!
//! An operator says *what* it computes, as a composition of a few shapes with pure kernels; how
//! that runs (incrementally, memoised, sharded) is the engine's affair. So nothing here knows
//! timely, differential or a database.

pub mod align;
mod asked;
pub mod category_map;
pub mod chat;
mod choose_labels;
pub mod choosing;
pub mod click_filter;
pub mod compact;
pub mod count;
pub mod csa_encoder;
pub mod dpo_updater;
pub mod features;
pub mod feedback_aggregator;
mod fitting;
mod graph;
pub mod group_profile;
pub mod hash_group;
mod held_back;
mod label_policy;
pub mod language_model;
pub mod llm_generate;
pub mod llm_sampler;
pub mod lm;
mod next_clicks;
pub mod nn;
pub mod one_group;
pub mod operator;
pub mod ordered;
mod portrait;
pub mod preference_pairs;
pub mod prompt_builder;
mod published;
pub mod recent_categories;
mod regroup;
mod replay;
pub mod reward_trainer;
pub mod row;
pub mod rq_quantizer;
pub mod schema;
pub mod scorer;
pub mod served;
pub mod sft_trainer;
pub mod shape;
mod taste;
mod template;
#[cfg(test)]
mod testing;
pub mod tuning;
pub mod writing;

use operator::Register;

/// The registry: every operator there is, one line each.
pub fn register(all: &mut impl Register) {
    all.operator::<category_map::CategoryMap>();
    all.operator::<click_filter::ClickFilter>();
    all.operator::<recent_categories::RecentCategories>();
    all.operator::<csa_encoder::CsaEncoder>();
    all.operator::<rq_quantizer::RqQuantizer>();
    all.operator::<group_profile::GroupProfile>();
    all.operator::<prompt_builder::PromptBuilder>();
    all.operator::<llm_sampler::LlmSampler>();
    all.operator::<scorer::Scorer>();
    all.operator::<sft_trainer::SftTrainer>();
    all.operator::<reward_trainer::RewardTrainer>();
    all.operator::<feedback_aggregator::FeedbackAggregator>();
    all.operator::<preference_pairs::PreferencePairs>();
    all.operator::<dpo_updater::DpoUpdater>();
    all.operator::<llm_generate::LlmGenerate>();
    all.operator::<align::Align>();
    all.operator::<one_group::OneGroup>();
    all.operator::<hash_group::HashGroup>();
    all.operator::<count::Count>();
}
