package pocketrank

/**
 * What one user did with F items.
 *
 * @property items (F,) vocabulary rows, ascending.
 * @property counts (F,) events with the item.
 * @property decayed (F,) the same, an event's weight halved every half-life, as of the item's last event.
 * @property firstS (F,) first event, seconds since 1970. @property lastS (F,) last event.
 */
class ItemMemory(
    val items: IntArray,
    val counts: DoubleArray,
    val decayed: DoubleArray,
    val firstS: LongArray,
    val lastS: LongArray,
) {
    val size: Int get() = items.size

    /** Place of an item; negative where it is not remembered. */
    fun place(row: Int): Int = items.binarySearch(row)

    /**
     * What the memory graph reads of the item at a place: count, decayed count, seconds since its last event, mean
     * seconds between its events; four numbers from `at` on.
     *
     * @param nowS seconds since 1970. @param halfLifeS seconds for an event to count half.
     */
    fun features(place: Int, nowS: Long, halfLifeS: Double, into: FloatArray, at: Int) {
        val since = maxOf(nowS - lastS[place], 0).toDouble()
        into[at] = counts[place].toFloat()
        into[at + 1] = (decayed[place] * Math.pow(2.0, -since / halfLifeS)).toFloat()
        into[at + 2] = since.toFloat()
        into[at + 3] = ((lastS[place] - firstS[place]) / maxOf(counts[place] - 1, 1.0)).toFloat()
    }

    /**
     * The memory after more events.
     *
     * @param rows (E,) vocabulary rows, -1 for an unknown item, which is passed over. @param timeUs (E,) ascending.
     */
    fun after(rows: IntArray, timeUs: LongArray, halfLifeS: Double): ItemMemory {
        val all = (items.asIterable() + rows.filter { it >= 0 }).toSortedSet().toIntArray()
        val found = ItemMemory(all, DoubleArray(all.size), DoubleArray(all.size), LongArray(all.size), LongArray(all.size))
        for (place in items.indices) {
            val to = found.place(items[place])
            found.counts[to] = counts[place]
            found.decayed[to] = decayed[place]
            found.firstS[to] = firstS[place]
            found.lastS[to] = lastS[place]
        }
        for (event in rows.indices) if (rows[event] >= 0) found.take(rows[event], timeUs[event], halfLifeS)
        return found
    }

    /** Takes in one event with an item that has a place. A decayed count is the one before, faded, plus 1. */
    private fun take(row: Int, timeUs: Long, halfLifeS: Double) {
        val place = place(row)
        val second = Math.floorDiv(timeUs, MICROSECONDS)
        if (counts[place] == 0.0) {
            decayed[place] = 1.0
            firstS[place] = second
        } else {
            val fading = Math.pow(2.0, minOf(lastS[place] - second, 0).toDouble() / halfLifeS)
            decayed[place] = decayed[place] * fading + 1
        }
        counts[place] += 1.0
        lastS[place] = second
    }

    companion object {
        val NONE = ItemMemory(IntArray(0), DoubleArray(0), DoubleArray(0), LongArray(0), LongArray(0))
    }
}
