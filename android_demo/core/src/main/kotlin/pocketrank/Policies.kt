package pocketrank

const val MICROSECONDS = 1_000_000L

/** The year 10000, seconds since 1970; no time is as late. */
const val LAST_S = 253_402_300_800L

/** A moment that no clock reaches: of a segment that the clock does not close. */
const val NEVER_US = Long.MAX_VALUE / 2

/**
 * The rule that closes segments; causal: whether an event closes one depends on it and the events before it alone.
 *
 * @property kind its name in a manifest.
 * @property maxEvents so many events close a segment, too.
 * @property lookback how many of the user's events before a segment matter to it.
 */
sealed class Policy(val kind: String) {
    abstract val maxEvents: Long
    open val lookback: Int get() = 0

    /**
     * When the clock closes a segment if no event comes, in microseconds since 1970.
     *
     * @param timeUs its last event.
     * @param spanUs time since the user's event [lookback] before that; [NEVER_US] where there is none.
     */
    abstract fun untilUs(timeUs: Long, spanUs: Long): Long

    /** Whether an event of this behaviour closes the segment it is in. */
    open fun isMilestone(behavior: String): Boolean = false

    companion object {
        internal const val WIDEST = 1L shl 62

        /**
         * The policy that a manifest names.
         *
         * @throws BadInput unknown kind, a number that is not a positive integer or too great, behaviours that are not
         *   a list of names, or an adaptive gap that cannot be.
         */
        fun of(settings: Map<String, Any?>): Policy {
            val kind = settings["kind"]
            fun number(name: String): Long {
                val most = if (name.endsWith("_s")) WIDEST / MICROSECONDS else WIDEST
                val value = settings[name]
                if (value !is Long || value <= 0) {
                    throw BadInput("segments: $name of $kind is ${shown(value)}, wanted a positive integer")
                }
                if (value > most) throw BadInput("segments: $name of $kind is $value, wanted at most $most")
                return value
            }
            return when (kind) {
                "session_gap" -> SessionGap(number("gap_s"), number("max_events"))
                "fixed_window" -> FixedWindow(number("window_s"), number("max_events"))
                "fixed_count" -> FixedCount(number("max_events"))
                "milestone" -> Milestone(names(settings["behaviors"]), number("max_events"))
                "adaptive" -> Adaptive(
                    number("factor"), number("lookback"), number("min_gap_s"), number("max_gap_s"), number("max_events"),
                )
                else -> throw BadInput(
                    "segments: unknown policy ${shown(kind)}; known are session_gap, fixed_window, fixed_count, " +
                        "milestone, adaptive",
                )
            }
        }

        private fun names(value: Any?): List<String> {
            val names = (value as? List<*>).orEmpty().map { it as? String ?: "" }
            if (names.isEmpty() || "" in names) {
                throw BadInput("segments: behaviors of milestone is ${shown(value)}, wanted a list of behaviours")
            }
            return names
        }
    }
}

/** A segment closes when [gapS] seconds pass without an event, or when it is full. */
class SessionGap(private val gapS: Long, override val maxEvents: Long) : Policy("session_gap") {
    override fun untilUs(timeUs: Long, spanUs: Long) = timeUs + gapS * MICROSECONDS
}

/** A segment closes at the end of its window, [windowS] seconds from a multiple of that since 1970 on, or full. */
class FixedWindow(private val windowS: Long, override val maxEvents: Long) : Policy("fixed_window") {
    override fun untilUs(timeUs: Long, spanUs: Long): Long {
        val windowUs = windowS * MICROSECONDS
        return (Math.floorDiv(timeUs, windowUs) + 1) * windowUs
    }
}

/** A segment closes with its [maxEvents]-th event; the clock closes none. */
class FixedCount(override val maxEvents: Long) : Policy("fixed_count") {
    override fun untilUs(timeUs: Long, spanUs: Long) = NEVER_US
}

/** A segment closes with an event of one of [behaviors], or its [maxEvents]-th; the clock closes none. */
class Milestone(val behaviors: List<String>, override val maxEvents: Long) : Policy("milestone") {
    override fun untilUs(timeUs: Long, spanUs: Long) = NEVER_US

    override fun isMilestone(behavior: String) = behavior in behaviors
}

/**
 * A segment closes when a pause is long at the user's own pace, or when it is full: [factor] times the mean pause of
 * the last [pauses] events, from [minGapS] to [maxGapS]; the latter also while the user has not had as many.
 *
 * @throws BadInput minGapS is above maxGapS, or the product of factor, maxGapS and lookback would not fit 64 bits.
 */
class Adaptive(
    private val factor: Long,
    private val pauses: Long,
    private val minGapS: Long,
    private val maxGapS: Long,
    override val maxEvents: Long,
) : Policy("adaptive") {
    override val lookback: Int get() = pauses.coerceAtMost(Int.MAX_VALUE.toLong()).toInt()

    init {
        if (minGapS > maxGapS) {
            throw BadInput("segments: min_gap_s of adaptive is $minGapS, wanted at most max_gap_s, $maxGapS")
        }
        val most = WIDEST / MICROSECONDS
        val product = factor.toBigInteger() * maxGapS.toBigInteger() * pauses.toBigInteger()
        if (product > most.toBigInteger()) {
            throw BadInput("segments: factor * max_gap_s * lookback of adaptive is $product, wanted at most $most")
        }
    }

    override fun untilUs(timeUs: Long, spanUs: Long): Long {
        val mostUs = maxGapS * MICROSECONDS
        val span = minOf(spanUs, mostUs * pauses) // first, or the product would not fit
        return timeUs + maxOf(minOf(Math.floorDiv(factor * span, pauses), mostUs), minGapS * MICROSECONDS)
    }
}
