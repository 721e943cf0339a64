// The ops on the CPU: checks of values, scratch memory and threads around the kernels of one instruction set.
#pragma once

#include "cpu/isa/isa.h"
#include "ops/moment_scores.h"
#include "ops/score_moments.h"
#include "ops/temporal_nms.h"

namespace mmn_fast {

// Throws std::invalid_argument for a NaN score or a moment that is not finite.
void temporal_nms_cpu(const TemporalNmsArgs& args, CpuIsa isa, int threads);

void moment_scores_cpu(const MomentScoresArgs& args, CpuIsa isa, int threads);

// Throws std::invalid_argument for a moment that is not finite, and for a NaN score, after which the outputs mean nothing.
void score_moments_cpu(const ScoreMomentsArgs& args, CpuIsa isa, int threads);

}  // namespace mmn_fast
