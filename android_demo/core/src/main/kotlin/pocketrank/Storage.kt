package pocketrank

/**
 * One event the phone saw.
 *
 * @property timeUs microseconds since 1970. @property score how much it weighs, >= 0.
 * @property arrival its number among all events of this storage, from 1; 0 before it is stored.
 */
data class Observed(
    val timeUs: Long,
    val item: ItemId,
    val behavior: String,
    val score: Double,
    val arrival: Long = 0,
)

/** What the phone keeps: events, the newest pack, and facts about syncing. Whoever calls it takes care of threads. */
interface Storage {
    /** All events by (time, arrival). */
    val events: List<Observed>

    /** The newest pack's bytes; null for none. */
    var pack: ByteArray?

    /** A fact by its name, null where it is not known. */
    fun fact(name: String): String?

    /** Knows a fact from now on; null forgets it. */
    fun know(name: String, value: String?)

    /** Keeps one event; it outlives the process when this returns. */
    fun add(event: Observed)

    /** Forgets events before a time that came no later than this arrival. */
    fun drop(beforeUs: Long, arrival: Long)

    /** Forgets everything. */
    fun clear()
}

/** Keeps all of it for as long as the process lives. */
class MemoryStorage : Storage {
    private val held = ArrayList<Observed>()
    private val facts = HashMap<String, String?>()
    private var last = 0L
    override val events: List<Observed> get() = held
    override var pack: ByteArray? = null

    override fun fact(name: String): String? = facts[name]

    override fun know(name: String, value: String?) {
        facts[name] = value
    }

    override fun add(event: Observed) {
        val stored = if (event.arrival > 0) event else event.copy(arrival = last + 1)
        last = maxOf(last, stored.arrival)
        var place = held.size // behind those of its time: they came before
        while (place > 0 && held[place - 1].timeUs > stored.timeUs) place--
        held.add(place, stored)
    }

    /** The arrival of the newest event there ever was. */
    internal fun lastArrival(): Long = last

    /** Numbers up to this one were given already. */
    internal fun skip(arrival: Long) {
        last = maxOf(last, arrival)
    }

    override fun drop(beforeUs: Long, arrival: Long) {
        held.removeAll { it.timeUs < beforeUs && it.arrival <= arrival }
    }

    override fun clear() {
        held.clear()
        facts.clear()
        pack = null
    }
}
