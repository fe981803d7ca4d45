package pocketrank.demo

import android.content.Context
import android.os.Handler
import android.os.Looper
import pocketrank.Bundle
import pocketrank.Hit
import pocketrank.ItemId
import pocketrank.Parity
import pocketrank.PinnedKey
import pocketrank.Ranker
import pocketrank.Reason
import pocketrank.SelfTest
import pocketrank.Stats
import pocketrank.ort.OrtEngine
import java.io.File
import java.util.concurrent.Executors

/**
 * All work with the ranker, on one thread of its own, and syncs on another, for which no ranking waits; answers come back
 * on the UI thread. It lives as long as the process, so a rotation opens nothing again; what a user did is in files, and
 * outlives the process.
 */
class Desk private constructor(context: Context) {
    /** One screenful. `milliseconds` is the time that ranking took, reasons not counted. */
    class Shown(
        val user: String?,
        val past: List<Reason>,
        val hits: List<Pair<Hit, List<Reason>>>,
        val stats: Stats,
        val milliseconds: Double,
        val items: Int,
    )

    private val files = File(context.noBackupFilesDir, "users")
    private val shipped = Shipped(context)
    private val worker = Executors.newSingleThreadExecutor { Thread(it, "ranking") }
    private val syncing = Executors.newSingleThreadExecutor { Thread(it, "syncing") }
    private val ui = Handler(Looper.getMainLooper())
    private val engine by lazy { OrtEngine() }
    private val bundle by lazy { Bundle.open(shipped.bundle(), shipped.key()?.let(PinnedKey::ofPem)) }
    private val homes = Homes { user -> Home(File(files, user ?: "nobody"), bundle, engine, user?.let { { shipped.pack(it) } }) }
    private var open: Open? = null

    /** The user who is shown, and their home. */
    private class Open(val user: String?, val home: Home) {
        val ranker get() = home.ranker
        val nowUs get() = Ranker.nowUs() - home.lateUs
    }

    val users: List<String> get() = shipped.users

    fun show(user: String?, failed: (String) -> Unit, then: (Shown) -> Unit) = work(failed, then) { shown(opened(user)) }

    fun observe(user: String?, item: ItemId, failed: (String) -> Unit, then: (Shown) -> Unit) = work(failed, then) {
        val open = opened(user)
        open.ranker.observe(item, bundle.manifest.behaviors.getOrElse(1) { "view" }, atUs = open.nowUs)
        shown(open)
    }

    fun forget(user: String?, failed: (String) -> Unit, then: (Shown) -> Unit) = work(failed, then) {
        opened(user).ranker.forget()
        shown(opened(user))
    }

    fun selfTest(failed: (String) -> Unit, then: (Parity) -> Unit) = work(failed, then) { SelfTest(bundle, engine).run() }

    /** Does what waits for a server. The user's ranker stays open meanwhile, whoever else is shown. */
    fun <T> sync(user: String?, failed: (String) -> Unit, then: (T) -> Unit, what: (Ranker) -> T) =
        syncing.execute { ui.post(answer(failed, then) { homes.with(user) { what(it.ranker) } }) }

    private fun <T> work(failed: (String) -> Unit, then: (T) -> Unit, what: () -> T) {
        worker.execute { ui.post(answer(failed, then, what)) }
    }

    private fun opened(user: String?): Open {
        open?.let { if (it.user == user) return it }
        open?.let { homes.giveBack(it.user) }
        open = null
        return Open(user, homes.take(user)).also { open = it }
    }

    private fun shown(open: Open): Shown {
        val nowUs = open.nowUs
        val begin = System.nanoTime()
        val ranking = open.ranker.rank(HITS, nowUs = nowUs)
        val milliseconds = (System.nanoTime() - begin) / 1e6
        val past = open.ranker.history(nowUs).asReversed()
        return Shown(
            open.user, past, ranking.hits.zip(ranking.reasons), open.ranker.stats(nowUs), milliseconds, bundle.sizes.I,
        )
    }

    companion object {
        private const val HITS = 10
        private var desk: Desk? = null

        /** The one of this process. */
        @Synchronized
        fun of(context: Context): Desk = desk ?: Desk(context.applicationContext).also { desk = it }
    }
}
