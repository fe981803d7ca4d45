package pocketrank.demo

/**
 * The homes that are open, each once, and until whoever took it last has given it back: so a sync that is under way goes
 * on for its user while another is shown. Nothing of Android.
 *
 * @param open opens a user's; null is nobody's.
 */
class Homes(private val open: (String?) -> Home) {
    private class Taken(val home: Home, var times: Int = 0)

    private val taken = HashMap<String?, Taken>()

    @Synchronized
    fun take(user: String?): Home = taken.getOrPut(user) { Taken(open(user)) }.also { it.times++ }.home

    @Synchronized
    fun giveBack(user: String?) {
        val it = taken.getValue(user)
        if (--it.times > 0) return
        taken.remove(user)
        it.home.close()
    }

    /** Does something that may take long with a home that stays open meanwhile. */
    fun <T> with(user: String?, what: (Home) -> T): T {
        val home = take(user)
        try {
            return what(home)
        } finally {
            giveBack(user)
        }
    }
}
