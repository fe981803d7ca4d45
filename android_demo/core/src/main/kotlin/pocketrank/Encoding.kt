package pocketrank

import java.io.Closeable

/**
 * Events in columns, sorted by (time, arrival).
 *
 * @property rows (E,) vocabulary rows, -1 for an unknown item. @property behavior (E,) places in the manifest's list.
 * @property timeUs (E,) microseconds since 1970. @property score (E,).
 */
class Events(val rows: IntArray, val behavior: IntArray, val timeUs: LongArray, val score: FloatArray) {
    val size: Int get() = rows.size

    fun part(first: Int, end: Int) = Events(
        rows.copyOfRange(first, end), behavior.copyOfRange(first, end), timeUs.copyOfRange(first, end),
        score.copyOfRange(first, end),
    )

    /** Whether these are the first events of a log. */
    fun begin(log: Events): Boolean = size <= log.size && (0 until size).all {
        rows[it] == log.rows[it] && behavior[it] == log.behavior[it] && timeUs[it] == log.timeUs[it] &&
            score[it] == log.score[it]
    }
}

private val LENGTHS = intArrayOf(4, 8, 16, 32, 64, 128, 256)

/** What so many are filled up to with masked ones: the first of some lengths that holds them, or `most`. */
internal fun filled(count: Int, most: Int): Int = LENGTHS.firstOrNull { count <= it && it < most } ?: most

/** A bundle's encoder graph, one segment a run. */
internal class Encoder(private val bundle: Bundle, engine: Engine) : Closeable {
    private val graph = engine.open(bundle, "encoder")
    private val runs = HashMap<Int, EncoderRun>()

    /** Encodes events `first` to `end`, at most L, as a segment of level 0. */
    fun closed(events: Events, first: Int, end: Int, ordinal: Long): Segment {
        val sizes = bundle.sizes
        val length = if (graph.isFixed) sizes.L else filled(end - first, sizes.L)
        val run = runs.getOrPut(length) { EncoderRun(length) }
        val rounded = quantise(run.encode(events, first, end), sizes.D)
        var weight = 0.0 // in float64, event by event, then rounded: equal by every route
        for (event in first until end) weight += events.score[event]
        return Segment(
            rounded.vectors, rounded.scales, events.timeUs[first], events.timeUs[end - 1], weight.toFloat(),
            (end - first).toLong(), ordinal, ordinal, level = 0, topItems = topItems(events, first, end),
        )
    }

    /** (T,) known items by summed score, ties to the lower row; -1 where there are fewer. */
    private fun topItems(events: Events, first: Int, end: Int): IntArray {
        val total = HashMap<Int, Double>()
        for (event in first until end) {
            val row = events.rows[event]
            if (row >= 0) total[row] = (total[row] ?: 0.0) + events.score[event]
        }
        val best = total.entries.sortedWith(compareBy({ -it.value }, { it.key }))
        return IntArray(bundle.sizes.T) { best.getOrNull(it)?.key ?: -1 }
    }

    /** (K, D) of a golden case: its rows and the graph's other inputs, all of L. */
    fun encodeGolden(rows: IntArray, behavior: IntArray, others: Map<String, FloatArray>): FloatArray {
        val run = runs.getOrPut(bundle.sizes.L) { EncoderRun(bundle.sizes.L) }
        return run.encode(rows, behavior, others)
    }

    override fun close() {
        runs.values.forEach(EncoderRun::close)
        graph.close()
    }

    private inner class EncoderRun(private val length: Int) : Closeable {
        private val width = bundle.sizes.D
        private val items = Tensor.zeros("items", Type.F32, 1, length, width)
        private val behavior = Tensor.zeros("behavior", Type.I32, 1, length)
        private val gap = Tensor.zeros("gap_s", Type.F32, 1, length)
        private val score = Tensor.zeros("score", Type.F32, 1, length)
        private val mask = Tensor.zeros("mask", Type.F32, 1, length)
        private val vectors = Tensor.zeros("vectors", Type.F32, 1, bundle.sizes.K, width)
        private val run = graph.bind(listOf(items, behavior, gap, score, mask), listOf(vectors))

        fun encode(events: Events, first: Int, end: Int): FloatArray {
            for (place in 0 until length) {
                val event = first + place
                val isThere = event < end
                if (isThere) bundle.items.embed(events.rows[event], items.floats, place * width) else blank(place)
                behavior.ints.put(place, if (isThere) events.behavior[event] else 0)
                score.floats.put(place, if (isThere) events.score[event] else 0f)
                mask.floats.put(place, if (isThere) 1f else 0f)
                val pauseUs = if (isThere && place > 0) events.timeUs[event] - events.timeUs[event - 1] else 0L
                gap.floats.put(place, (pauseUs / MICROSECONDS.toDouble()).toFloat())
            }
            run.run()
            return vectors.floatArray()
        }

        fun encode(rows: IntArray, behaviors: IntArray, others: Map<String, FloatArray>): FloatArray {
            for (place in 0 until length) {
                bundle.items.embed(rows[place], items.floats, place * width)
                behavior.ints.put(place, behaviors[place])
                for (input in listOf(gap, score, mask)) input.floats.put(place, others.getValue(input.name)[place])
            }
            run.run()
            return vectors.floatArray()
        }

        private fun blank(place: Int) {
            for (d in place * width until (place + 1) * width) items.floats.put(d, 0f)
        }

        override fun close() = run.close()
    }
}
