package pocketrank

/**
 * One segment of a log, or the one still open.
 *
 * @property first index of its first event. @property end index after its last.
 * @property closedAtUs when an event or the clock closed it, or the clock will if no event comes.
 * @property closed an event closed it, or came after it; otherwise only the clock can.
 */
class Cut(val first: Int, val end: Int, val closedAtUs: Long, val closed: Boolean) {
    fun isClosedBy(nowUs: Long): Boolean = closed || closedAtUs <= nowUs
}

/**
 * A user's newest segment, as far as the fate of the next event depends on it; goes on event by event.
 *
 * @param recentUs times of the events before, oldest first, as in a pack.
 */
class Cutting(private val policy: Policy, recentUs: LongArray = LongArray(0)) {
    /** Events that it holds; 0 before the first event. */
    var events = 0L
        private set

    /** When its last event closed it, or when the clock will if no event comes. */
    var closedAtUs = 0L
        private set

    /** Its last event closed it: the next one begins another. */
    var closed = true
        private set
    private val recent = ArrayDeque(recentUs.takeLast(policy.lookback))

    /** Takes in one event, no earlier than those before. Afterwards [events] is 1 where it began another segment. */
    fun step(timeUs: Long, behavior: String) {
        val begins = closed || timeUs >= closedAtUs
        events = if (begins) 1 else events + 1
        closed = events == policy.maxEvents || policy.isMilestone(behavior)
        val spanUs = if (recent.size == policy.lookback) timeUs - (recent.firstOrNull() ?: timeUs) else NEVER_US
        closedAtUs = if (closed) timeUs else policy.untilUs(timeUs, spanUs)
        if (policy.lookback > 0) {
            if (recent.size == policy.lookback) recent.removeFirst()
            recent.addLast(timeUs)
        }
    }
}

/**
 * Cuts one user's events.
 *
 * @param recentUs times of events that are in no segment, only looked back at; they come first.
 * @param timeUs ascending. @param behavior name of an event's behaviour.
 */
fun cut(policy: Policy, recentUs: LongArray, timeUs: LongArray, behavior: (Int) -> String): List<Cut> {
    val found = ArrayList<Cut>()
    val open = Cutting(policy, recentUs)
    var first = 0
    for (place in timeUs.indices) {
        val closedAtUs = open.closedAtUs
        open.step(timeUs[place], behavior(place))
        if (open.events == 1L && place > 0) {
            found.add(Cut(first, place, closedAtUs, closed = true))
            first = place
        }
    }
    if (timeUs.isNotEmpty()) found.add(Cut(first, timeUs.size, open.closedAtUs, open.closed))
    return found
}
