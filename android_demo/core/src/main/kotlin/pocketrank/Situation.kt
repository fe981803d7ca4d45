package pocketrank

/**
 * What the phone knows at one moment: a pack, the events it lacks, and the clock.
 *
 * @property closed segments of the pack and those that closed here since, oldest first; at most S.
 * @property live events of the open segment, at most L.
 * @property memory what the user did with single items, pack and live events together.
 * @property byId events with items that the vocabulary lacks, by id.
 * @property covered events of the segments that closed here, which are `count`.
 */
internal class Situation(
    val bundle: Bundle,
    val pack: Pack?,
    val closed: List<Segment>,
    val live: Events,
    val memory: ItemMemory,
    val byId: Map<ItemId, Int>,
    private val covered: Events,
    private val count: Int,
) {
    companion object {
        /**
         * Works out what the phone knows.
         *
         * @param observed the phone's own events by (time, arrival); those the pack covers are passed over.
         * @param nowUs the clock, which may close the last segment.
         * @param before what it knew last; where only later events came in, its closed segments are gone on from, and
         *   the result is the same.
         */
        fun of(
            bundle: Bundle,
            encoder: Encoder,
            pack: Pack?,
            observed: List<Observed>,
            nowUs: Long,
            before: Situation? = null,
        ): Situation {
            val manifest = bundle.manifest
            val events = uncovered(observed, pack)
            val log = columns(bundle, events)
            val cuts = cut(manifest.policy, pack?.recentUs ?: LongArray(0), log.timeUs) { manifest.behaviors[log.behavior[it]] }
            val done = cuts.count { it.isClosedBy(nowUs) }
            val goesOn = before?.takeIf { it.pack === pack && it.goesOn(log, cuts, done) }
            val held = goesOn?.closed ?: pack?.segments.orEmpty()
            val covered = if (done > 0) cuts[done - 1].end else 0
            return Situation(
                bundle = bundle,
                pack = pack,
                closed = closed(bundle, encoder, held, log, cuts.subList(0, done), goesOn?.count ?: 0),
                live = log.part(covered, log.size),
                memory = (pack?.memory ?: ItemMemory.NONE).after(log.rows, log.timeUs, manifest.memoryHalfLifeS),
                byId = byId(bundle, events),
                covered = log.part(0, covered),
                count = done,
            )
        }

        private fun byId(bundle: Bundle, events: List<Observed>): Map<ItemId, Int> {
            val found = HashMap<ItemId, Int>()
            for (event in events) if (bundle.items.row(event.item) < 0) found[event.item] = (found[event.item] ?: 0) + 1
            return found
        }

        /** Events that a pack does not cover: those after `through`, counting the events at that very time. */
        fun uncovered(observed: List<Observed>, pack: Pack?): List<Observed> {
            val through = pack?.through ?: return observed
            var atThatTime = 0L
            return observed.filter {
                it.timeUs > through.timeUs || (it.timeUs == through.timeUs && atThatTime++ >= through.events)
            }
        }

        private fun columns(bundle: Bundle, events: List<Observed>) = Events(
            IntArray(events.size) { bundle.items.row(events[it].item) },
            IntArray(events.size) { bundle.manifest.behaviorId(events[it].behavior) },
            LongArray(events.size) { events[it].timeUs },
            FloatArray(events.size) { events[it].score.toFloat() },
        )

        /** The segments to keep of those held, which have `count` of the closed ones, and of the next ones. */
        private fun closed(
            bundle: Bundle,
            encoder: Encoder,
            held: List<Segment>,
            log: Events,
            done: List<Cut>,
            count: Int,
        ): List<Segment> {
            val compaction = bundle.manifest.compaction
            val first = if (compaction.remembers) count else maxOf(done.size - compaction.slots, count)
            val ordinal = (held.maxOfOrNull { it.ordinalLast } ?: -1) + 1 - count
            val new = (first until done.size).map { encoder.closed(log, done[it].first, done[it].end, ordinal + it) }
            return if (new.isEmpty()) held else compaction.close(held, new)
        }
    }

    /** Whether the user is known to have touched an item: it is remembered, as live ones are, or a segment names it. */
    fun names(row: Int): Boolean {
        for (segment in closed) if (row in segment.topItems) return true
        return memory.place(row) >= 0
    }

    /** Whether the segments that were closed here are the first ones of a log that is cut so. */
    private fun goesOn(log: Events, cuts: List<Cut>, done: Int): Boolean =
        count <= done && (count == 0 || cuts[count - 1].end == covered.size) && covered.begin(log)
}
