package pocketrank

/**
 * One closed and encoded segment, or several that were merged.
 *
 * @property vectors (K, D) int8 in a row. @property scales (K,).
 * @property startUs time of the first event, microseconds since 1970. @property endUs of the last.
 * @property weight sum of the events' scores.
 * @property ordinalFirst number of the oldest segment merged into this one. @property ordinalLast of the newest.
 * @property level 0 as it was cut.
 * @property topItems (T,) vocabulary rows, -1 where there are fewer.
 */
class Segment(
    val vectors: ByteArray,
    val scales: FloatArray,
    val startUs: Long,
    val endUs: Long,
    val weight: Float,
    val events: Long,
    val ordinalFirst: Long,
    val ordinalLast: Long,
    val level: Int,
    val topItems: IntArray,
) {
    /**
     * This segment and the one right after it as one: vectors weighted by events, as the int8 that both are stored in.
     *
     * Source: docs/segments.md, "Merging".
     */
    fun merged(newer: Segment, level: Int): Segment {
        val count = events + newer.events
        val width = vectors.size / scales.size
        val share = events.toDouble() / count
        val newerShare = newer.events.toDouble() / count
        val mean = FloatArray(vectors.size) { place ->
            val k = place / width
            val older = share * (vectors[place] * scales[k])
            (older + newerShare * (newer.vectors[place] * newer.scales[k])).toFloat()
        }
        val rounded = quantise(mean, width)
        return Segment(
            vectors = rounded.vectors,
            scales = rounded.scales,
            startUs = startUs,
            endUs = newer.endUs,
            weight = (weight.toDouble() + newer.weight).toFloat(),
            events = count,
            ordinalFirst = ordinalFirst,
            ordinalLast = newer.ordinalLast,
            level = level,
            topItems = foremost(newer),
        )
    }

    /** (T,) items of both lists by places times events, ties to the lower row: the first of T places is worth T. */
    private fun foremost(newer: Segment): IntArray {
        val points = HashMap<Int, Long>()
        for (part in listOf(this, newer)) {
            part.topItems.forEachIndexed { place, item ->
                if (item >= 0) points[item] = (points[item] ?: 0) + part.events * (topItems.size - place)
            }
        }
        val best = points.entries.sortedWith(compareBy({ -it.value }, { it.key }))
        return IntArray(topItems.size) { best.getOrNull(it)?.key ?: -1 }
    }
}
