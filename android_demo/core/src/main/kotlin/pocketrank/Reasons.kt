package pocketrank

/**
 * One part of a score.
 *
 * @property added what it added. @property startS of a segment, its first event, seconds since 1970; 0 otherwise.
 * @property endS of a segment, its last event. @property items of a segment, its foremost items.
 */
class Reason(
    val kind: Kind,
    val added: Double,
    val startS: Long = 0,
    val endS: Long = 0,
    val items: List<ItemId> = emptyList(),
) {
    /** `BASE` is the score of somebody without any history; `INTERACTION` is what parts add only together. */
    enum class Kind { SEGMENT, LIVE, MEMORY, BASE, INTERACTION }

    override fun toString() = "${kind.name.lowercase()} ${items.joinToString()} $added"
}

/**
 * Why items rank where they do: each segment, the live session and the memory is left out once, and what its absence
 * takes away is what it added. With `INTERACTION`, the remainder, and `BASE` they sum to the score.
 *
 * @param rows vocabulary rows of the items. @param nowUs the clock by which they were ranked.
 * @return for each its reasons, the greatest first.
 */
internal fun reasons(
    situation: Situation,
    nowUs: Long,
    graph: StateGraph,
    scorer: Scorer,
    rows: IntArray,
): List<List<Reason>> {
    val isLive = situation.live.size > 0
    val leftOut = ArrayList<LeftOut>()
    leftOut.add(LeftOut())
    leftOut.add(LeftOut(segments = true, live = true))
    if (isLive) leftOut.add(LeftOut(live = true))
    situation.closed.indices.mapTo(leftOut) { LeftOut(segment = it) }
    val states = graph.states(situation, nowUs, leftOut)
    val scores = scorer.scoresOnce(Candidates.of(situation.bundle, rows), states)
    val memory = scorer.remembered(situation.memory, Math.floorDiv(nowUs, MICROSECONDS))
    return rows.indices.map { hit ->
        val full = scores[0][hit]
        val fromMemory = situation.memory.place(rows[hit]).let { if (it < 0) 0f else memory[it] }
        val parts = ArrayList<Reason>()
        parts.add(Reason(Reason.Kind.BASE, scores[1][hit].toDouble()))
        parts.add(Reason(Reason.Kind.MEMORY, fromMemory.toDouble()))
        if (isLive) parts.add(Reason(Reason.Kind.LIVE, (full - scores[2][hit]).toDouble()))
        situation.closed.forEachIndexed { number, segment ->
            val without = scores[states.size - situation.closed.size + number][hit]
            parts.add(ofSegment(situation, segment, (full - without).toDouble()))
        }
        val rest = full + fromMemory - parts.sumOf { it.added }
        parts.add(Reason(Reason.Kind.INTERACTION, rest))
        parts.sortedWith { one, other -> other.added.compareTo(one.added) }
    }
}

internal fun ofSegment(situation: Situation, segment: Segment, added: Double) = Reason(
    Reason.Kind.SEGMENT,
    added,
    Math.floorDiv(segment.startUs, MICROSECONDS),
    Math.floorDiv(segment.endUs, MICROSECONDS),
    segment.topItems.filter { it >= 0 }.map { situation.bundle.items.ids[it] },
)
