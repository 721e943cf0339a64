// The ops on the CPU: checks of values, scratch memory and threads around the kernels of one instruction set.
#pragma once

#include <vector>

#include "cpu/isa/isa.h"
#include "ops/match_scores.h"
#include "ops/target_iou.h"
#include "ops/temporal_nms.h"
#include "ops/top_moments.h"

namespace mmn_fast {

// Throws std::invalid_argument for a NaN score or a moment that is not finite.
void temporal_nms_cpu(const TemporalNmsArgs& args, CpuIsa isa, int threads);

void match_scores_cpu(const MatchScoresArgs& args, CpuIsa isa, int threads);

// Throws std::invalid_argument for a moment that is not finite, and for a NaN score; the outputs are then undefined.
void top_moments_cpu(const TopMomentsArgs& args, CpuIsa isa, int threads);

// As top_moments_cpu for each pair; threads share the pairs where there are enough.
void top_moments_of_pairs_cpu(const std::vector<TopMomentsArgs>& pairs, CpuIsa isa, int threads);

// Throws std::invalid_argument for arguments that ops/target_iou.h refuses. Defined in cpu/target_iou.cc.
void target_iou_cpu(const TargetIouArgs& args, int threads);

}  // namespace mmn_fast
