package pocketrank

/**
 * Which of a user's closed segments are kept in S slots.
 *
 * Which segments merge, and when, follows from their ordinals alone, so a phone goes on from a pack by the same rule.
 * Source: docs/segments.md, "Compaction".
 */
sealed class Compaction(val slots: Int) {
    abstract val kind: String

    /** Whether every new segment counts, and not the last [slots] alone. */
    abstract val remembers: Boolean

    /** What is kept, oldest first, after `new` segments closed one after the other behind the `held` ones. */
    abstract fun close(held: List<Segment>, new: List<Segment>): List<Segment>

    /** Whether these segments are what this compaction can have left. */
    abstract fun fits(held: List<Segment>): Boolean

    companion object {
        /**
         * The compaction that a manifest names.
         *
         * @throws BadInput unknown kind, or more levels than the slots can hold.
         */
        fun of(settings: Map<String, Any?>, slots: Int): Compaction = when (val kind = settings["kind"]) {
            "ring" -> Ring(slots)
            "log" -> {
                val levels = settings["levels"]
                if (levels !is Long || levels < 1) {
                    throw BadInput("[segments] levels: found ${shown(levels)}, wanted a positive integer")
                }
                if (levels > (slots - 1) / 2) {
                    throw BadInput(
                        "[segments] levels: $levels levels of two segments and one for the rest take " +
                            "${levels.toBigInteger() * 2.toBigInteger() + 1.toBigInteger()} slots, found slots = $slots; " +
                            "give more slots or fewer levels",
                    )
                }
                Log(slots, levels.toInt())
            }
            else -> throw BadInput("[segments] compaction: found ${shown(kind)}, wanted 'ring' or 'log'")
        }
    }
}

/** The newest [slots] segments; the oldest falls out. */
class Ring(slots: Int) : Compaction(slots) {
    override val kind get() = "ring"
    override val remembers get() = false

    override fun close(held: List<Segment>, new: List<Segment>) = (held + new).takeLast(slots)

    override fun fits(held: List<Segment>) = held.size <= slots
}

/**
 * A whole history: [levels] levels, where a segment of level l spans 2^l ordinals, and one slot for the rest, which
 * takes in whatever the highest level gives up.
 */
class Log(slots: Int, private val levels: Int) : Compaction(slots) {
    override val kind get() = "log"
    override val remembers get() = true

    /** Slots of each level; what does not divide goes to level 0. */
    private val capacity: IntArray = ((slots - 1) / levels).let { each ->
        IntArray(levels) { level -> if (level == 0) slots - 1 - each * (levels - 1) else each }
    }

    override fun close(held: List<Segment>, new: List<Segment>): List<Segment> {
        val kept = List(levels + 1) { level -> ArrayDeque(held.filter { it.level == level }) }
        for (segment in new) close(kept, segment, 0)
        return kept.asReversed().flatten()
    }

    private fun close(kept: List<ArrayDeque<Segment>>, segment: Segment, level: Int) {
        val there = kept[level]
        if (level == levels) {
            there.addLast(if (there.isEmpty()) segment else there.removeFirst().merged(segment, level))
            return
        }
        if (there.size == capacity[level]) {
            val oldest = there.removeFirst()
            close(kept, oldest.merged(there.removeFirst(), level + 1), level + 1)
        }
        there.addLast(segment)
    }

    override fun fits(held: List<Segment>): Boolean {
        val found = LongArray(levels + 1)
        for (segment in held) if (segment.level <= levels) found[segment.level]++ else return false
        var arrived = (held.maxOfOrNull { it.ordinalLast } ?: -1) + 1
        for (level in 0 until levels) {
            val above = maxOf(arrived - capacity[level] + 1, 0) / 2 // a full level passes two on, as one
            if (found[level] != arrived - 2 * above) return false
            arrived = above
        }
        return found[levels] == minOf(arrived, 1)
    }
}
