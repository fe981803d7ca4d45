package pocketrank

import java.io.Closeable
import java.io.File

/**
 * One ranked item.
 *
 * @property score only the order between items of one ranking means something.
 */
class Hit internal constructor(
    val item: ItemId,
    val score: Float,
    private val ranking: Ranking,
    private val place: Int,
) {
    /** What each segment, the live session and the memory added, the greatest first; worked out when asked for. */
    val reasons: List<Reason> get() = ranking.reasons[place]

    override fun toString() = "Hit($item, $score)"
}

/**
 * The answer to one request.
 *
 * @property hits best first. @property basis what they were ranked from: "segments", "live", "memory", "popularity".
 */
class Ranking internal constructor(
    private val ranker: Ranker,
    private val situation: Situation,
    private val atUs: Long,
    private val rows: IntArray,
    scores: (Int) -> Float,
) {
    val hits: List<Hit> = List(rows.size) { Hit(situation.bundle.items.ids[rows[it]], scores(it), this, it) }
    val basis: List<String>
        get() = listOfNotNull(
            "segments".takeIf { situation.closed.isNotEmpty() },
            "live".takeIf { situation.live.size > 0 },
            "memory".takeIf { situation.memory.size > 0 },
            "popularity",
        )

    /** Reasons of every hit. */
    val reasons: List<List<Reason>> by lazy { ranker.reasons(situation, rows, atUs) }
}

/** What a ranker has, as of a clock; `through` is up to when the pack reaches, `refused` why the kept one is not used. */
class Stats(
    val segments: Int,
    val liveEvents: Int,
    val rememberedItems: Int,
    val packVersion: PackVersion?,
    val through: Through?,
    val refused: String?,
)

/**
 * Ranks one user's candidates on the device; safe to call from several threads, one works at a time.
 *
 * The state is worked out when something changed (an event, a pack, a step of the clock) and kept; a request runs the
 * score graph alone.
 *
 * @param storage events and pack of this user.
 * @throws BadBundle the engine cannot read the bundle's graphs.
 */
class Ranker(val bundle: Bundle, engine: Engine, private val storage: Storage = MemoryStorage()) : Closeable {
    private val state = StateGraph(bundle, engine)
    private val scorer = Scorer(bundle, engine)
    private val encoder = Encoder(bundle, engine)
    private val best = Best(bundle.items.order)
    private val added = FloatArray(bundle.sizes.I)
    private var refused: String? = null
    private var pack: Pack? = kept()
    private var before: Situation? = null
    private var known: Known? = null
    private var asked: Candidates? = null
    private val askedAt = IntArray(bundle.sizes.I)
    private var requests = 0
    private var isOpen = true

    /**
     * Another number after each [forget] and [close]: what was asked for before is then nobody's. Whoever compares it and
     * takes something in does both while `synchronized` on this ranker.
     */
    var epoch = 0
        private set

    /** A state, what it was worked out from, and when: reasons take it apart by that same clock. */
    private class Known(val step: Long, val atUs: Long, val situation: Situation, val state: State)

    /** The `ETag` that the pack in use was synced with; kept with it, and null without. */
    var etag: String?
        @Synchronized get() = if (pack == null) null else storage.fact(ETAG)
        @Synchronized set(value) = storage.know(ETAG, value)

    companion object {
        private const val CLOCK_STEP_US = 60 * MICROSECONDS
        private const val ETAG = "pack_etag"
        private const val FLOOR = "floor_us"

        /** Opens a ranker of the bundle in a folder; see [Bundle.open]. */
        fun open(folder: File, engine: Engine, storage: Storage = MemoryStorage(), key: PinnedKey? = null): Ranker =
            Ranker(Bundle.open(folder, key), engine, storage)

        /** The clock, in microseconds since 1970. */
        fun nowUs(): Long = System.currentTimeMillis() * 1000
    }

    /**
     * Takes in a newer pack; it is kept in the storage. When it is refused, the old one stays.
     *
     * @param where its name, for messages.
     * @throws BadPack not a whole pack, not one for this bundle, older than what is kept, or of before the user was
     *   forgotten.
     * @throws BundleMismatch encoded by another model than this bundle.
     */
    @Synchronized
    fun load(content: ByteArray, where: String) {
        val new = Pack.read(content, where)
        check(new, where)
        if (new.through.timeUs <= floorUs()) {
            throw BadPack("$where: of before the user was forgotten; somebody keeps it for too long")
        }
        pack?.let {
            if (new.version < it.version) {
                throw BadPack("$where: version ${told(new.version)} is older than ${told(it.version)}, which is kept")
            }
        }
        storage.know(ETAG, null) // which was of the one before
        storage.pack = content
        pack = new
        refused = null
        known = null
    }

    /**
     * Takes in one event; it is in the storage when this returns.
     *
     * @param item one that the vocabulary lacks is kept, and encoded as an unknown item.
     * @param score how much it weighs, 0 to 1e12; null takes the bundle's weight of the behaviour, or 1.
     * @param atUs microseconds since 1970.
     * @throws BadInput a score or a time that is not usable.
     */
    @Synchronized
    fun observe(item: ItemId, behavior: String = "view", score: Double? = null, atUs: Long = nowUs()) {
        val weight = score ?: bundle.manifest.weights[behavior] ?: 1.0
        if (weight !in 0.0..MOST) throw BadInput("observe: score is $weight, wanted a number of 0 to 1e+12")
        storage.add(Observed(checked(atUs), item, behavior, weight))
        known = null
    }

    /**
     * Ranks items.
     *
     * @param k hits wanted, at most.
     * @param candidates what [prepare] made of ids; null ranks the whole catalogue.
     * @param excludeSeen leave out items that the user is known to have touched: those remembered, and those that kept
     *   segments and live events name.
     * @param nowUs time of the request, microseconds since 1970.
     * @param exclude items to leave out; ones that the vocabulary lacks are fine.
     * @param where attribute -> values: only items that have one of them, of each attribute; see [Bundle.attributes].
     * @return at most k hits, best first, ties by item id.
     * @throws BadInput k is less than 1, or the bundle lacks an attribute.
     */
    @Synchronized
    fun rank(
        k: Int = 10,
        candidates: Candidates? = null,
        excludeSeen: Boolean = false,
        nowUs: Long = nowUs(),
        exclude: Set<ItemId> = emptySet(),
        where: Map<String, Collection<String>> = emptyMap(),
    ): Ranking {
        if (k < 1) throw BadInput("rank: k is $k, wanted at least 1")
        val known = known(checked(nowUs))
        val chosen = candidates ?: scorer.all
        require(chosen.bundle === bundle) { "candidates of another bundle" }
        val scores = scorer.scores(chosen, known.state, added)
        val seen = known.situation.takeIf { excludeSeen }
        val asked = bundle.attributes.wanted(where)
        val count = best.find(scores, chosen.rows, chosen.size, k) { row ->
            seen?.names(row) != true && bundle.items.ids[row] !in exclude && asked.test(row)
        }
        val rows = IntArray(count) { chosen.rows[best.places[it]] }
        return Ranking(this, known.situation, known.atUs, rows) { best.score(it) }
    }

    /** Ranks among some items; ones that the vocabulary lacks are left out, repeated ones count once. */
    @Synchronized
    fun rank(
        k: Int,
        candidates: List<ItemId>,
        excludeSeen: Boolean = false,
        nowUs: Long = nowUs(),
        exclude: Set<ItemId> = emptySet(),
        where: Map<String, Collection<String>> = emptyMap(),
    ): Ranking {
        val room = asked?.takeIf { it.rows.size >= candidates.size && it.rows.size <= 2 * candidates.size + 128 }
            ?: Candidates.room(bundle, candidates.size).also { asked = it }
        fill(room, candidates)
        return rank(k, room, excludeSeen, nowUs, exclude, where)
    }

    /** Looks candidates up once, for many requests among the same ones. */
    @Synchronized
    fun prepare(candidates: List<ItemId>): Candidates =
        Candidates.room(bundle, candidates.size).also { fill(it, candidates) }

    private fun fill(room: Candidates, candidates: List<ItemId>) {
        room.size = 0
        requests++ // rows that were asked for before have another number
        for (place in candidates.indices) {
            val row = bundle.items.row(candidates[place])
            if (row < 0 || askedAt[row] == requests) continue
            askedAt[row] = requests
            room.add(row)
        }
    }

    /** What the ranker has, when the clock, which may close the live segment, is `nowUs`. */
    @Synchronized
    fun stats(nowUs: Long = nowUs()): Stats {
        val situation = known(checked(nowUs)).situation
        return Stats(
            situation.closed.size, situation.live.size, situation.memory.size, pack?.version, pack?.through, refused,
        )
    }

    /** Segments that the user has, oldest first, when the clock is `nowUs`: what each was about. */
    @Synchronized
    fun history(nowUs: Long = nowUs()): List<Reason> {
        val situation = known(checked(nowUs)).situation
        return situation.closed.map { ofSegment(situation, it, 0.0) }
    }

    /**
     * Forgets events that the pack covers for certain: those that `through` has passed by more than the allowed
     * lateness, and whose upload was acknowledged.
     *
     * @param acknowledged arrival of the newest event that the server has; Long.MAX_VALUE where it sees everything.
     */
    @Synchronized
    fun dropCovered(acknowledged: Long) {
        val through = pack?.through ?: return
        storage.drop(through.timeUs - bundle.manifest.latenessS * MICROSECONDS, acknowledged)
        known = null
    }

    /** Removes every event and the pack from the device. */
    @Synchronized
    fun forget() {
        storage.clear()
        emptied()
    }

    /**
     * Removes the pack, and events up to a time, when the server forgot the user; no pack that ends before is taken again.
     *
     * @throws BadInput a time that is not usable.
     */
    @Synchronized
    fun forget(untilUs: Long) {
        val floorUs = floorUs()
        if (checked(untilUs) <= floorUs && pack == null) return // which was done before
        storage.drop(untilUs + 1, Long.MAX_VALUE)
        storage.pack = null
        storage.know(FLOOR, "${maxOf(untilUs, floorUs)}") // last, so that what was cut off is done again
        emptied()
    }

    private fun emptied() {
        epoch++
        pack = null
        known = null
        before = null
        refused = null
    }

    private fun floorUs(): Long = storage.fact(FLOOR)?.toLongOrNull() ?: Long.MIN_VALUE

    /** Works the state out again at the next request, as after an event. */
    @Synchronized
    fun changed() {
        known = null
    }

    /** Closes the graphs, once. The storage stays open: whoever opened it closes it, or gives it to another ranker. */
    @Synchronized
    override fun close() {
        epoch++
        if (isOpen) listOf(state, scorer, encoder).forEach(Closeable::close)
        isOpen = false
    }

    @Synchronized
    internal fun reasons(situation: Situation, rows: IntArray, atUs: Long): List<List<Reason>> =
        reasons(situation, atUs, state, scorer, rows)

    /** The situation and the state, worked out again when something changed or the clock made a step. */
    private fun known(nowUs: Long): Known {
        val step = Math.floorDiv(nowUs, CLOCK_STEP_US)
        known?.let { if (it.step == step) return it }
        val situation = Situation.of(bundle, encoder, pack, storage.events, nowUs, before)
        val run = state.states(situation, nowUs).single()
        val remembered = scorer.remembered(situation.memory, Math.floorDiv(nowUs, MICROSECONDS))
        added.fill(0f)
        situation.memory.items.forEachIndexed { place, row -> added[row] = remembered[place] }
        before = situation
        return Known(step, nowUs, situation, run).also { known = it }
    }

    private fun kept(): Pack? = try {
        storage.pack?.let { content -> Pack.read(content, "the kept pack").also { check(it, "the kept pack") } }
    } catch (error: PocketRankError) {
        refused = error.message
        null
    }

    private fun check(pack: Pack, where: String) {
        val wanted = bundle.manifest.encoderId
        if (pack.encoderId != wanted) {
            throw BundleMismatch("$where: encoded by ${pack.encoderId}, this bundle's encoder is $wanted; sync again")
        }
        val sizes = bundle.sizes
        val fits = pack.each == sizes.K && pack.width == sizes.D && pack.topItems == sizes.T
        if (!fits || pack.lastRow >= sizes.I) {
            throw BadPack(
                "$where: K, D, T are (${pack.each}, ${pack.width}, ${pack.topItems}) and the last item is row " +
                    "${pack.lastRow}, this bundle has (${sizes.K}, ${sizes.D}, ${sizes.T}) and ${sizes.I} items; sync again",
            )
        }
        val compaction = bundle.manifest.compaction
        if (!compaction.fits(pack.segments)) {
            throw BadPack(
                "$where: its ${pack.segments.size} segments are not what a ${compaction.kind} of ${sizes.S} slots " +
                    "leaves, as this bundle wants it; sync again",
            )
        }
    }

    private fun told(version: PackVersion) = "(${version.generation}, ${version.closedAtUs})"

    private fun checked(timeUs: Long): Long {
        val most = LAST_S * MICROSECONDS
        if (timeUs <= -most || timeUs >= most) throw BadInput("time is $timeUs, wanted microseconds since 1970")
        return timeUs
    }
}
